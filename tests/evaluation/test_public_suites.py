"""Public prompt suites: loaders on small files in the published formats, with prompts of our own."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from surveylib import catalog
from surveylib.evaluation.suites import CARDS, load_suite
from surveylib.evaluation.suites.cards import DRAWBENCH, NOT_VERIFIED


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def geneval(tmp_path):
    rows = [
        {"tag": "counting", "include": [{"class": "zebra", "count": 3}], "exclude": [{"class": "zebra", "count": 4}],
         "prompt": "a photo of three zebras"},
        {"tag": "position", "include": [{"class": "cup", "count": 1},
                                        {"class": "fork", "count": 1, "position": ["left of", 0]}],
         "prompt": "a photo of a fork left of a cup"},
    ]
    lines(tmp_path / "geneval" / "prompts" / "evaluation_metadata.jsonl", *map(json.dumps, rows))
    return tmp_path / "geneval"


def test_geneval(geneval):
    counting, position = load_suite("geneval", geneval)
    assert (counting.text, counting.category) == ("a photo of three zebras", "counting")
    assert counting.metadata["exclude"] == [{"class": "zebra", "count": 4}]
    assert position.metadata["include"][1]["position"] == ["left of", 0]
    assert load_suite("geneval", geneval / "prompts" / "evaluation_metadata.jsonl") == [counting, position]
    assert load_suite("geneval", geneval, category="position") == [position]


def test_rows_of_the_shapes_suites_have_genevals_names():
    """Their rows hold GenEval's fields in `metadata`: the same names, so that one summary reads both."""
    from surveylib.worlds.shapes.judge import Verdict
    from surveylib.worlds.shapes.suites import row_of, suite

    row = row_of(suite("held-out", 1)[0], Verdict(True, {}, 1.0, True, ""))
    assert {"tag", "prompt", "correct", "reason", "metadata"} <= set(row)


def test_compbench(tmp_path):
    folder = tmp_path / "T2I-CompBench" / "examples" / "dataset"
    lines(folder / "color_val.txt", "a green fox and a white fence", "", "a red door and a grey wall ")
    lines(folder / "color_train.txt", "a blue fox and a red fence")
    lines(folder / "3d_spatial_val.txt", "a fox behind a fence")
    lines(folder / "color_val_seen.txt", "not a file of the suite's own")
    found = load_suite("t2i_compbench", tmp_path)
    assert [(p.text, p.category) for p in found] == [
        ("a green fox and a white fence", "color"), ("a red door and a grey wall", "color"),
        ("a fox behind a fence", "3d_spatial")]
    assert [p.text for p in load_suite("t2i_compbench", tmp_path, split="train")] == ["a blue fox and a red fence"]
    assert load_suite("t2i_compbench", folder / "3d_spatial_val.txt")[0].category == "3d_spatial"


def test_partiprompts_keep_their_quotation_marks(tmp_path):
    lines(tmp_path / "PartiPrompts.tsv", "Prompt\tCategory\tChallenge\tNote", "a lighthouse\tOutdoor Scenes\tBasic\t",
          '"open" on a door, and "shut" beside it\tArtifacts\tWriting & Symbols\twith marks')
    first, second = load_suite("partiprompts", tmp_path)
    assert first.metadata == {"challenge": "Basic", "note": ""} and first.category == "Outdoor Scenes"
    assert second.text == '"open" on a door, and "shut" beside it' and second.metadata["note"] == "with marks"


def test_drawbench_as_csv_and_as_parquet(tmp_path):
    lines(tmp_path / "a" / "drawbench.csv", "Prompts,Category", "A teal fox.,Colors", '"Two foxes, one hen.",Counting')
    found = load_suite("drawbench", tmp_path / "a")
    assert [(p.text, p.category) for p in found] == [("A teal fox.", "Colors"), ("Two foxes, one hen.", "Counting")]
    table = pyarrow.table({"prompts": ["A teal fox.", "Two foxes, one hen."], "category": [0, 2]})
    (tmp_path / "b").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "b" / "test-00000-of-00001.parquet")
    assert load_suite("drawbench", tmp_path / "b") == found
    named = pyarrow.table({"Prompts": ["A teal fox."], "Category": ["Colors"]})
    pyarrow.parquet.write_table(named, tmp_path / "named.parquet")
    assert load_suite("drawbench", tmp_path / "named.parquet") == found[:1]
    assert len(DRAWBENCH) == 11


def test_hpdv2(tmp_path):
    for style, texts in (("photo", ["a fox at dawn", "a hen"]), ("anime", ["a fox with a sword"])):
        lines(tmp_path / "benchmark" / f"{style}.json", json.dumps(texts))
    found = load_suite("hpdv2", tmp_path)
    assert [(p.text, p.category, p.metadata["number"]) for p in found] == [
        ("a fox with a sword", "anime", 0), ("a fox at dawn", "photo", 0), ("a hen", "photo", 1)]
    assert len(load_suite("hpdv2", tmp_path / "benchmark" / "photo.json")) == 2


@pytest.mark.parametrize("key", CARDS)
def test_missing_files_say_what_to_download(key, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_suite(key, tmp_path)
    assert CARDS[key].download.split("  #")[0] in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_suite(key, tmp_path / "nowhere")


@pytest.mark.parametrize("key, name, content, word", [
    ("geneval", "evaluation_metadata.jsonl", '{"tag": "colors"', r"line 1 is no JSON"),
    ("geneval", "evaluation_metadata.jsonl", '{"tag": "colors", "prompt": "x"}', r"line 1 lacks include"),
    ("geneval", "evaluation_metadata.jsonl", '{"tag": "colors", "include": [], "prompt": 3}', "not 3"),
    ("partiprompts", "PartiPrompts.tsv", "Prompt\tCategory\nx\ty", "lacks the columns Challenge, Note"),
    ("drawbench", "x.csv", "Text,Category\nx,y", "row 1, column Prompts"),
    ("drawbench", "x.parquet", "nothing", "no readable parquet"),
    ("hpdv2", "photo.json", '["a",', "no readable JSON"),
    ("hpdv2", "photo.json", '{"a": 1}', "array of prompts"),
    ("hpdv2", "photo.json", '["a", ""]', r"photo.json\[1\]"),
])
def test_damaged_files_are_named(key, name, content, word, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=word):
        load_suite(key, tmp_path)


def test_an_unknown_class_number(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"prompts": ["x"], "category": [11]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="class 11"):
        load_suite("drawbench", tmp_path)


def test_bad_words(geneval):
    with pytest.raises(ValueError, match="unknown prompt suite 'drawbrench'"):
        load_suite("drawbrench", geneval)
    with pytest.raises(ValueError, match="no split 'train'"):
        load_suite("geneval", geneval, split="train")
    with pytest.raises(ValueError, match=r"no category 'size'.*counting, position"):
        load_suite("geneval", geneval, category="size")
    with pytest.raises(ValueError, match="553 prompts; 2 were found"):
        load_suite("geneval", geneval, whole=True)


def test_cards_are_those_of_the_catalog():
    for key in ("geneval", "t2i_compbench", "drawbench", "partiprompts"):
        assert catalog.lookup(key).module == "surveylib.evaluation.suites.loaders"
    assert all(card.licence for card in CARDS.values()) and CARDS["drawbench"].licence == NOT_VERIFIED
    metrics = {"fid": "distributions", "kid": "distributions", "precision_recall": "distributions",
               "vendi": "diversity"}
    for key, file in metrics.items():
        assert catalog.lookup(key).module == f"surveylib.evaluation.metrics.{file}"
