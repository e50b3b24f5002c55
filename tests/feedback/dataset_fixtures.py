"""Small public data sets, written in exactly their on-disk formats."""

from __future__ import annotations

import datetime
import io
import json
import sqlite3
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(value: int, form: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    """A grey picture of one value."""
    out = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(out, form, **({"lossless": True} if form == "WEBP" else {}))
    return out.getvalue()


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data) if isinstance(data, bytes) else path.write_text(data, encoding="utf-8")


PICKAPIC_ROWS = [
    # ranking, user, caption, labels, has_label, pictures
    (11, 5, "a cat", (1.0, 0.0), True, (10, 20)),
    (12, 5, "a cat", (0.5, 0.5), True, (10, 30)),
    (13, 6, "a dog", (0.0, 1.0), True, (40, 50)),
    (14, 6, "a dog", (None, None), False, (40, 60)),
    (15, 7, "a cow", (1.0, 0.0), True, (70, 70)),
    (16, 7, "a cow", (1.0, 1.0), True, (70, 80)),
]


def write_pickapic(folder: Path, split: str = "validation_unique", drop: tuple[str, ...] = ()) -> None:
    """data/<split>-00000-of-00001.parquet with the columns and types of the hub's file."""
    rows = []
    for ranking, user, caption, labels, has_label, shown in PICKAPIC_ROWS:
        rows.append({
            "are_different": labels[0] != labels[1], "best_image_uid": f"uid{shown[0]}", "caption": caption,
            "created_at": datetime.datetime(2023, 1, 2, 3, 4, 5), "has_label": has_label,
            "image_0_uid": f"uid{shown[0]}", "image_0_url": "https://example.org/0", "image_1_uid": f"uid{shown[1]}",
            "image_1_url": "https://example.org/1", "jpg_0": picture(shown[0], "JPEG"),
            "jpg_1": picture(shown[1], "JPEG"), "label_0": labels[0], "label_1": labels[1],
            "model_0": "model A", "model_1": "model B",
            "ranking_id": ranking, "user_id": user, "num_example_per_prompt": 2, "__index_level_0__": ranking,
        })  # fmt: skip
    types = {"created_at": pa.timestamp("ns"), "jpg_0": pa.binary(), "jpg_1": pa.binary(), "label_0": pa.float64(),
             "label_1": pa.float64()}  # fmt: skip
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(table.drop_columns(list(drop)), folder / "data" / f"{split}-00000-of-00001.parquet")


def write_open_image_preferences(folder: Path) -> None:
    """Picture columns as structs of bytes and path, with the metadata by which `datasets` knows them as pictures."""
    rows = [{"prompt": f"prompt {i}", "chosen": {"bytes": picture(i), "path": "c.jpg"},
             "rejected": {"bytes": picture(i + 100), "path": "r.jpg"}} for i in (1, 2)]  # fmt: skip
    features = {"prompt": {"dtype": "string", "_type": "Value"}}
    features |= {name: {"_type": "Image"} for name in ("chosen", "rejected")}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (folder / "data").mkdir(parents=True)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")


def write_hpd_v1(folder: Path) -> None:
    for name, value in (("7_0", 1), ("7_1", 2), ("7_2", 3), ("8_0", 4), ("8_1", 5)):
        put(folder / "preference_images" / f"{name}.jpg", picture(value))
    rows = [
        {"human_preference": 1, "prompt": "a boat", "id": 7, "user_hash": "u1", "contain_name": False,
         "file_path": ["preference_images/7_0.jpg", "preference_images/7_1.jpg", "preference_images/7_2.jpg"]},
        {"human_preference": 0, "prompt": "a car", "id": 8, "user_hash": "u2", "contain_name": True,
         "file_path": ["8_0.jpg", "8_1.jpg"]},
        {"human_preference": 2, "prompt": "a car", "id": 9, "user_hash": "u2", "contain_name": True,
         "file_path": ["8_0.jpg", "8_1.jpg"]},
    ]  # fmt: skip
    put(folder / "preference_train.json", json.dumps(rows))


def write_hpd_v2(folder: Path) -> None:
    for i in range(4):
        put(folder / "train" / f"{i}.jpg", picture(i, "JPEG"))
        put(folder / "test" / f"{i}.jpg", picture(100 + 20 * i, "JPEG"))
    put(folder / "train" / "cut.jpg", picture(9, "JPEG", (64, 64))[:400])
    train = [
        {"prompt": "one", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]},
        {"prompt": "two", "file_path": ["2.jpg", "3.jpg"], "human_preference": [1, 0]},
        {"prompt": "two", "file_path": ["2.jpg", "3.jpg"], "human_preference": [1, 1]},
        {"prompt": "two", "file_path": ["2.jpg", "gone.jpg"], "human_preference": [1, 0]},
        {"prompt": "two", "file_path": ["2.jpg", "cut.jpg"], "human_preference": [1, 0]},
        {"prompt": "two", "file_path": ["2.jpg", "3.jpg"]},
    ]
    raw = [{"rank": [4, 1, 2, 3], "user_hash": "u"}, {"rank": [1, 1, 3, 4], "user_hash": "v"}]
    names = [f"{i}.jpg" for i in range(4)]
    test = [{"prompt": "three", "image_path": names, "rank": [2, 0, 1, 2], "raw_annotations": raw}]
    put(folder / "train.json", json.dumps(train))
    put(folder / "test.json", json.dumps(test))


def write_hpd_v3(folder: Path) -> None:
    put(folder / "images" / "a.png", picture(1))
    put(folder / "images" / "b.png", picture(2))
    rows = [
        {"prompt": "a hill", "path1": "images/a.png", "path2": "images/b.png", "choice_dist": [12, 7],
         "confidence": 0.99, "model1": "flux", "model2": "real"},
        {"prompt": "a hill", "path1": "b.png", "path2": "a.png", "choice_dist": [10, 9], "confidence": 0.6,
         "model1": "real", "model2": "flux"},
    ]  # fmt: skip
    put(folder / "train.json", json.dumps(rows))


def write_imagerewarddb(folder: Path) -> None:
    """metadata-validation.parquet; pictures of the first prompt unpacked, of the second in the archive."""
    rows = []
    judged = {"001-1": ((1, 7, 6, 5), (1, 6, 6, 6), (2, 1, 2, 3)), "002-2": ((2, 3, 3, 3), (1, 9, 4, 4))}
    for prompt, images in judged.items():
        for i, (rank, overall, alignment, fidelity) in enumerate(images):
            rows.append({
                "image_path": f"images/validation/validation_{prompt[2]}/{prompt}-{i}.webp", "prompt_id": prompt,
                "prompt": f"prompt {prompt}", "classification": "People", "image_amount_in_total": len(images),
                "rank": rank, "overall_rating": overall, "image_text_alignment_rating": alignment,
                "fidelity_rating": fidelity,
            })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata-validation.parquet")
    for i in range(3):
        put(folder / rows[i]["image_path"], picture(10 + i, "WEBP"))
    with zipfile.ZipFile(folder / "images" / "validation" / "validation_2.zip", "w") as archive:
        for i in range(2):
            archive.writestr(f"002-2-{i}.webp", picture(20 + i, "WEBP"))


def write_simulacra(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / "sac_public_2022_06_29.sqlite")
    database.executescript("""
        CREATE TABLE survey (id INTEGER, qid INTEGER, rating INTEGER);
        CREATE TABLE generations (id INTEGER PRIMARY KEY, sid INTEGER, method INTEGER, prompt TEXT, verified INTEGER);
        CREATE TABLE images (id INTEGER PRIMARY KEY, gid INTEGER, idx INTEGER);
        CREATE TABLE paths (iid INTEGER, path TEXT);
        CREATE TABLE ratings (sid INTEGER, iid INTEGER, rating INTEGER, verified INTEGER);
        CREATE TABLE upscales (iid INTEGER, method INTEGER);
        INSERT INTO generations VALUES (1, 50, 2, 'a tower', 1), (2, 51, 3, 'a tree', 0);
        INSERT INTO images VALUES (10, 1, 0), (11, 1, 1), (12, 2, 0);
        INSERT INTO paths VALUES (10, 'a/10.png'), (11, 'a/11.png');
        INSERT INTO ratings VALUES (50, 10, 9, 1), (51, 10, 1, 0), (50, 11, NULL, 1), (50, 12, 5, 1), (50, 11, 11, 1);
    """)
    database.commit()
    database.close()
    for i in (10, 11):
        put(folder / "a" / f"{i}.png", picture(i))


def write_visionprefer(folder: Path) -> None:
    scores = {"prompt-following": 4, "aesthetic": 3, "fidelity": 5, "harmlessness": 5}
    rows = [{"prompt_id": 3, "prompt": "a fox", "images": [
        {"image_id": "3_0", "model": "SD1.5", "guidance": 7.5, "scores": scores, "rationale": {"fidelity": "sharp"}},
        {"image_id": "3_1", "model": "SDXL", "guidance": 5.0, "scores": scores | {"fidelity": 6}, "rationale": {}},
        {"image_id": "3_2", "model": "SDXL", "guidance": 5.0, "scores": scores, "rationale": {}},
    ]}]  # fmt: skip
    put(folder / "visionprefer.jsonl", json.dumps(rows[0]) + "\n{broken\n")
    put(folder / "images" / "3_0.png", picture(1))
    put(folder / "images" / "3_1.jpg", picture(2, "JPEG"))


# A second, independent writer of TFRecord and protobuf bytes: bit by bit, so that it shares nothing with the reader.
def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """One TFRecord record."""

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: dict[str, bytes | list[float] | list[int]], packed: bool = True) -> bytes:
    """A serialised tf.train.Example; floats and integers packed (as TensorFlow writes) or one by one."""
    out = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            kind = message(1, message(1, value))
        elif isinstance(value[0], float):
            floats = [struct.pack("<f", v) for v in value]
            kind = message(2, message(1, b"".join(floats)) if packed else b"".join(b"\x0d" + f for f in floats))
        else:
            numbers = [varint(v % 2**64) for v in value]
            kind = message(3, message(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers))
        out += message(1, message(1, name.encode()) + message(2, kind))
    return message(1, out)


def grey_png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array.astype(np.uint8), "L").save(out, "PNG")
    return out.getvalue()


RICH_MAP = np.arange(12).reshape(3, 4) * 20


def rich_example(filename: str, label: str) -> bytes:
    return example({
        "filename": filename.encode(), "aesthetics_score": [0.25], "artifact_score": [0.5],
        "misalignment_score": [0.75], "overall_score": [1.0],
        "artifact_map": grey_png(RICH_MAP), "misalignment_map": grey_png(RICH_MAP.T),
        "prompt_misalignment_label": label.encode(),
    })  # fmt: skip


def write_richhf(folder: Path) -> None:
    """dev.tfrecord: pictures uid10 and uid40 of the Pick-a-Pic fixture, a wrong label count, an unknown picture."""
    examples = [("train/uid10.png", "1 0"), ("uid40.png", "0 1"), ("uid20.png", "1"), ("unknown.png", "1 1")]
    put(folder / "dev.tfrecord", b"".join(framed(rich_example(*e)) for e in examples))
