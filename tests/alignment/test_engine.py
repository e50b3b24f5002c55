"""The engine: cuts do not matter, costs are counted, bad runs are stopped with nothing lost."""

import dataclasses
import json

import pytest
import torch
from alignment.small import PROMPTS, TRAINING, brightness, small_run, weights_after

from surveylib.alignment import engine
from surveylib.alignment.engine import Alignment, AlignmentError, align, prepare_weights
from surveylib.alignment.memory import stored_bytes
from surveylib.alignment.processes import Processes
from surveylib.cli import main
from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.model import Condition
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.runs.checkpoint import load_checkpoint, save_checkpoint
from surveylib.runs.ledger import Ledger
from surveylib.techniques.contract import Batch, Draw, TechniqueError, Training
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig
from surveylib.techniques.registry import preset
from surveylib.techniques.reward_weighted.rwr import RWR
from surveylib.techniques.test_time.best_of_n import BestOfN

CONFIG = DDPOConfig(steps=2, guidance=1.0)


def largest(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_weights_move_and_repeat():
    model, steps = small_run()
    before = None
    first = weights_after(steps, model)
    model, steps = small_run()
    again = weights_after(steps, model)
    assert largest(first, again) == 0.0
    model, steps = small_run(epochs=1, lr=0.0)
    before = weights_after(steps, model)
    assert largest(first, before) > 1e-3


@pytest.mark.truth
def test_micro_batches_do_not_change_the_update():
    results = []
    for micro, rollout in ((100, 8), (5, 8), (1, 3)):
        model, steps = small_run(micro_batch=micro, sample_batch=rollout, epochs=2)
        results.append(weights_after(steps, model))
    assert largest(results[0], results[1]) < 1e-4
    assert largest(results[0], results[2]) < 1e-4


def test_more_updates_are_more_optimiser_steps():
    _, steps = small_run(updates=4, passes=2, epochs=2)
    assert [progress.updates for progress in steps] == [8, 16]


def test_costs_are_counted_exactly():
    _, steps = small_run(epochs=1)
    ledger = list(steps)[-1].ledger
    samples, rolled, trained = 8, 3, 2  # the last step has no noise
    assert ledger.network_calls == samples * rolled + samples * trained
    assert ledger.backward_passes == samples * trained
    assert ledger.decodes == ledger.reward_calls == samples
    assert ledger.equivalents == ledger.network_calls + 2 * ledger.backward_passes
    assert ledger.overhead > 1


def test_what_an_epoch_stores_is_told_and_views_count_once():
    model, steps = small_run(epochs=1)
    told = next(steps).stored
    latents = 8 * 4 * 4 * 8 * 8  # samples, states of three steps, a latent
    pictures = 8 * 3 * 32 * 32
    # the text condition, log-probabilities, times and advantages come on top
    least, text = 4 * (latents + pictures), model.encode(PROMPTS[:1])
    beside = 4 * 8 * 2 * sum(value.numel() for value in text.tensors.values())
    assert least < told < least + beside + 2000
    path = torch.zeros(2, 3, 5)
    batch = Batch(Condition({}, ["a", "b"]), {"x0": path[:, -1]}, {"x": path[:, :-1], "next": path[:, 1:]})
    assert stored_bytes(batch) == 4 * 2 * 3 * 5


class BesideAnother(Processes):
    """As if another process spent twice what this one does."""

    def sum_numbers(self, numbers):
        return {name: 3 * value for name, value in numbers.items()} if "network_calls" in numbers else dict(numbers)


def test_costs_of_other_processes_are_in_checkpoints_and_counted_on_after_them():
    _, steps = small_run(epochs=1)
    alone = next(steps).ledger
    run, resumed = in_half(dtype=torch.float32, updates=2, epochs=2), in_half(dtype=torch.float32, updates=2, epochs=2)
    run.processes = resumed.processes = BesideAnother()
    first = run.advance().ledger
    assert first.network_calls == run.state_dict()["ledger"]["network_calls"] == 3 * alone.network_calls
    resumed.load_state_dict(run.state_dict())
    for again in (run, resumed):
        assert again.advance().ledger.equivalents == again.ledger.equivalents == 6 * alone.equivalents


def test_the_first_pictures_of_an_epoch_are_handed_on_and_the_others_are_let_go():
    _, steps = small_run(epochs=1, samples=24)
    progress = next(steps)
    assert progress.pictures.shape[0] == engine.SHOWN and len(progress.prompts) == 24
    assert progress.pictures.device.type == "cpu"
    assert progress.pictures.untyped_storage().nbytes() == progress.pictures.nbytes


def test_guidance_counts_twice_and_counters_come_off():
    model, ledger = load_model("tiny-sd"), Ledger()
    x, condition = model.initial_noise(2), model.encode(["a", "b"])
    with ledger.watch(model), torch.no_grad():
        model.predict(x, 500, condition, guidance=2.0)
        model.decode(x)
    model.predict(x, 500, condition, guidance=2.0)
    assert (ledger.network_calls, ledger.decodes, ledger.backward_passes) == (4, 2, 0)
    assert "decode" not in vars(model)


def test_prompts_come_in_passes_and_groups_stay_whole():
    seen = []
    _, steps = small_run(epochs=3, samples=6, lr=0.0, ema=0.0)
    for progress in steps:
        assert [progress.prompts[i] == progress.prompts[i + 1] for i in (0, 2, 4)] == [True] * 3
        seen += progress.prompts[::2]
    assert [sorted(seen[i : i + 3]) for i in (0, 3, 6)] == [sorted(PROMPTS)] * 3


def test_two_ranks_draw_the_two_halves():
    whole = Draw.of(PROMPTS * 2, seed=5)
    noise = [torch.randn(3, generator=g) for g in whole.generators()]
    half = dataclasses.replace(whole, indices=whole.indices[3:], prompts=whole.prompts[3:], groups=whole.groups[3:])
    assert torch.equal(torch.stack(noise[3:]), torch.stack([torch.randn(3, generator=g) for g in half.generators()]))


def test_recorded_rows_come_in_shuffled_passes():
    draws = [Draw(1, epoch, [], torch.zeros(4).long(), torch.arange(4), 4) for epoch in range(3)]
    rows = torch.cat([draw.rows(6) for draw in draws])
    assert sorted(rows[:6].tolist()) == sorted(rows[6:].tolist()) == list(range(6))
    assert rows[:6].tolist() != rows[6:].tolist()
    with pytest.raises(TechniqueError, match="empty"):
        draws[0].rows(0)


# -- bad input
@pytest.mark.parametrize("changed, words", [
    ({"samples": 7}, "do not divide into groups of 2"),
    ({"updates": 9}, "cannot be cut"),
    ({"micro_batch": 0}, "at least 1"),
    ({"autocast": "int8"}, "choose None"),
    ({"lr": -1.0}, "must not be negative"),
])
def test_settings_that_do_not_fit(changed, words):
    with pytest.raises(TechniqueError, match=words):
        dataclasses.replace(TRAINING, **changed)


def run_with(reward, **changed):
    model = load_model("tiny-sd")
    training = dataclasses.replace(TRAINING, epochs=1, **changed)
    return list(align(model, DDPO(DDPOConfig(steps=2, guidance=1.0)), reward, PROMPTS, training))


def test_constant_rewards_leave_the_weights():
    model = load_model("tiny-sd")
    constant = FunctionReward(lambda pictures, prompts: torch.ones(len(pictures)), "constant")
    training = dataclasses.replace(TRAINING, epochs=1, weight_decay=0.0)
    steps = align(model, DDPO(DDPOConfig(steps=2, guidance=1.0)), constant, PROMPTS, training)
    progress = list(steps)[-1]
    assert progress.metrics["grad_norm"] == 0.0


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        run_with(FunctionReward(lambda pictures, prompts: torch.full((len(pictures),), float("nan")), "broken"))


def test_preference_data_for_a_reward_method():
    with pytest.raises(TechniqueError, match="learns from a reward; got str"):
        run_with("pickscore")


def test_no_prompts():
    with pytest.raises(TechniqueError, match="got none"):
        list(align(load_model("tiny-sd"), DDPO(), brightness(), [], TRAINING))


class Diverging(DDPO):
    def loss(self, model, items, signal, means):
        losses, metrics = super().loss(model, items, signal, means)
        return losses * float("inf"), metrics


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(AlignmentError, match="loss of epoch 1 is not finite"):
        list(align(load_model("tiny-sd"), Diverging(CONFIG), brightness(), PROMPTS, TRAINING))


class Hungry(DDPO):
    def loss(self, model, items, signal, means):
        raise torch.OutOfMemoryError("no room")


@dataclasses.dataclass(frozen=True)
class Recomputing(DDPOConfig):
    steps: int = 2
    guidance: float | None = 1.0
    checkpoint: bool = False


@pytest.mark.parametrize("config, changed, words", [
    (CONFIG, {}, "micro_batch=6: lower micro_batch (the update stays the same), or set checkpoint=True (slower), or "
                 "lower samples (fewer in an epoch)"),
    (Recomputing(), {"samples": 2}, "micro_batch=6: lower micro_batch (the update stays the same), or set "
                                    "checkpoint=True (slower)"),
    (Recomputing(checkpoint=True), {"micro_batch": 1, "lora_rank": None, "samples": 2},
     "micro_batch=1: train an adapter, lora_rank=16"),
    (CONFIG, {"micro_batch": 1, "samples": 2}, "micro_batch=1: set checkpoint=True (slower)"),
    (CONFIG, {"micro_batch": 1, "samples": 2, "checkpoint": True}, "micro_batch=1: take a smaller model or resolution"),
])
def test_out_of_memory_names_settings_that_are_there_and_help(config, changed, words):
    training, checkpoint = training_of(changed)
    with pytest.raises(AlignmentError) as stopped:
        list(align(load_model("tiny-sd"), Hungry(config), brightness(), PROMPTS, training, checkpoint=checkpoint))
    assert str(stopped.value) == f"out of memory with {words}"


def training_of(changed):
    """TRAINING with changes, and whether blocks are recomputed."""
    own = {name: value for name, value in changed.items() if name != "checkpoint"}
    return dataclasses.replace(TRAINING, **own), changed.get("checkpoint", False)


class Greedy(DDPO):
    """Asks the CPU for a million gigabytes."""

    def loss(self, model, items, signal, means):
        torch.empty(2**50, dtype=torch.uint8)

    def collect(self, model, draw, signal):
        return super().collect(model, draw, signal) if draw.total == 8 else torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("changed, words", [
    ({}, "micro_batch=6: lower micro_batch .*, or set checkpoint=True"),
    ({"samples": 4}, "sample_batch=8: lower sample_batch .*, or lower samples"),
])
def test_out_of_memory_on_the_cpu_names_the_same_settings(changed, words):
    with pytest.raises(AlignmentError, match=f"out of memory with {words}"):
        list(align(load_model("tiny-sd"), Greedy(CONFIG), brightness(), PROMPTS, training_of(changed)[0]))


def test_another_error_stays_what_it_is():
    class Wrong(DDPO):
        def loss(self, model, items, signal, means):
            return torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="size") as stopped:
        list(align(load_model("tiny-sd"), Wrong(CONFIG), brightness(), PROMPTS, TRAINING))
    assert not isinstance(stopped.value, AlignmentError)


def test_samples_that_do_not_divide_over_processes():
    processes = Processes(cpu=True)
    processes.count = 3
    with pytest.raises(ValueError, match="8 samples do not divide over 3 processes"):
        next(align(load_model("tiny-sd"), DDPO(), brightness(), PROMPTS, TRAINING, processes=processes))


@pytest.mark.parametrize("variables, words", [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported.* --use_fsdp --fsdp_version 2"),
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported.* --fsdp_version 2"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
     "kept on the CPU is not supported.* --fsdp_offload_params false"),
])
def test_ways_of_distribution_that_are_refused_name_another(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AlignmentError, match=words):
        Processes()


def test_the_command_line_refuses_a_way_of_distribution_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("sys.argv", ["surveylib", "align", "ddpo", "--scale", "rehearsal", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "error: FSDP version 1 is not supported" in capsys.readouterr().err


def test_full_weights_keep_a_reference():
    model, steps = small_run(lora_rank=None, epochs=1)
    after = weights_after(steps, model)
    assert largest(after, model.snapshots["reference"]) > 0
    with model.reference():
        inside = {name: p.detach() for name, p in model.named_trainable_parameters().items()}
        assert largest(inside, model.snapshots["reference"]) == 0


# -- half precision
def in_half(**changed):
    """A model in float16 and its run; one step of a very small loss, as DDPO's mean over 128 x 50 items is."""
    model = load_model("tiny-sd", dtype=changed.pop("dtype", torch.float16))
    technique = DDPO(DDPOConfig(steps=3, guidance=1.0, tracker_least=2))
    training = dataclasses.replace(TRAINING, **{"epochs": 1, "updates": 1, **changed})
    return Alignment(model, technique, changed.pop("signal", brightness()), PROMPTS, training, 3, Processes())


def gradients(run, weight=1.0):
    """What `_backward` and the unscaling leave for one item, its loss multiplied by `weight`."""
    def tiny(loss):
        return lambda *given: (lambda losses, metrics: (losses * weight, metrics))(*loss(*given))

    run.technique.loss = tiny(run.technique.loss)
    found = {}
    run.optimiser.step = lambda *_, **__: found.update(
        {n: p.grad.clone() for n, p in run.model.named_trainable_parameters().items()})
    run.advance()
    return found


def test_small_gradients_survive_float16():
    """The same weights and noise in float32; a loss of 1e-6 vanishes in float16 without a scale."""
    for weight in (1.0, 1e-5):
        runs = (in_half(dtype=dtype, clip_norm=1e9) for dtype in (torch.float16, torch.float32))
        half, full = (torch.cat([g.flatten() for g in gradients(run, weight).values()]) for run in runs)
        assert full.norm() > 0 and 0.8 < half.norm() / full.norm() < 1.25
        assert torch.cosine_similarity(half, full, 0) > 0.98


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    run = in_half(epochs=2)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, enabled=True)
    before = {n: p.detach().clone() for n, p in run.model.named_trainable_parameters().items()}
    progress = run.advance()
    assert progress.metrics["skipped_steps"] == 1 and progress.updates == 0
    assert run.scaler.get_scale() == 2.0**59
    assert largest(before, {n: p.detach() for n, p in run.model.named_trainable_parameters().items()}) == 0
    again = in_half(epochs=2)
    again.load_state_dict(run.state_dict())
    assert again.scaler.get_scale() == 2.0**59


def test_a_process_without_a_sample_of_the_first_update_takes_the_step_too():
    run = in_half()
    draw = run.draw()
    batch = run.technique.collect(run.model, draw, run.signal)
    found = run._update(batch, draw, torch.tensor([99]), 0)
    assert found == {"loss": 0.0, "grad_norm": 0.0, "skipped_steps": 0.0}


def test_in_float16_a_run_resumes_exactly_with_its_scale(tmp_path, monkeypatch):
    """The scale doubles after three steps: in the second epoch, counted on from the first."""
    monkeypatch.setattr(engine, "SCALE_STEPS", 3)
    straight, killed, resumed = (in_half(epochs=2, updates=2) for _ in range(3))
    for _ in range(2):
        straight.advance()
    killed.advance()
    save_checkpoint(tmp_path / "c", killed.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path / "c"))
    resumed.advance()
    assert straight.scaler.state_dict() == resumed.scaler.state_dict()
    assert straight.scaler.get_scale() == 2 * engine.SCALE
    ends = ({n: p.detach() for n, p in run.model.named_trainable_parameters().items()} for run in (straight, resumed))
    assert largest(*ends) == 0


def test_an_adapter_that_came_in_half_precision_is_trained_in_float32():
    model = load_model("tiny-sd", dtype=torch.float16)
    add_lora(model, 2)
    model.network.half()
    run = Alignment(model, DDPO(CONFIG), brightness(), PROMPTS, TRAINING, 3, Processes())
    assert model.dtype == torch.float16 and {p.dtype for p in run.parameters} == {torch.float32}
    run.advance()
    assert all(p.isfinite().all() for p in run.parameters)


def test_all_weights_of_a_float64_model_stay_in_float64():
    run = in_half(lora_rank=None, dtype=torch.float64)
    assert run.model.dtype == torch.float64 and run.reduced is None and not run.scaler.is_enabled()


def test_all_weights_of_a_half_precision_model_are_trained_in_float32():
    run = in_half(lora_rank=None, lr=1e-4)
    before = {n: p.detach().clone() for n, p in run.model.named_trainable_parameters().items()}
    run.advance()
    after = run.model.named_trainable_parameters()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    assert 0 < largest(before, {n: p.detach() for n, p in after.items()}) < 1e-3


# -- blocks computed twice
def whole(checkpoint, lora_rank):
    """The gradients of one update, how often blocks ran, and the cost."""
    model, calls = load_model("tiny-sd"), []
    training = dataclasses.replace(TRAINING, epochs=1, updates=1, clip_norm=1e9, lora_rank=lora_rank)
    run = Alignment(model, DDPO(CONFIG), brightness(), PROMPTS, training, 3, Processes(), checkpoint)
    for block in model.network.up_blocks:
        block.resnets[0].register_forward_pre_hook(lambda *given: calls.append(1))
    found = gradients(run)
    return torch.cat([g.flatten() for g in found.values()]), len(calls), run.ledger


@pytest.mark.truth
@pytest.mark.parametrize("lora_rank", [2, None])
def test_recomputed_blocks_give_the_same_gradient_at_the_same_count(lora_rank):
    """Up to float32's rounding: a millionth of the gradient's norm."""
    (kept, once, cost), (again, more, cost_again) = (whole(checkpoint, lora_rank) for checkpoint in (False, True))
    assert more > once, "no block ran twice"
    assert kept.norm() > 0 and (kept - again).norm() <= 1e-6 * kept.norm()
    assert (cost.network_calls, cost.backward_passes) == (cost_again.network_calls, cost_again.backward_passes)


def test_a_network_without_blocks_to_recompute_is_refused():
    model = load_model("tiny-sd")
    model.network._supports_gradient_checkpointing = False
    with pytest.raises(TechniqueError, match="checkpoint=True: UNet2DConditionModel has no gradient checkpointing"):
        next(align(model, DDPO(CONFIG), brightness(), PROMPTS, TRAINING, checkpoint=True))


# -- the folder
def test_a_folder_in_use(tmp_path):
    _, first = small_run(tmp_path)
    next(first)
    _, second = small_run(tmp_path)
    with pytest.raises(ValueError, match="in use"):
        next(second)
    first.close()
    next(small_run(tmp_path)[1])


def test_a_folder_of_another_run(tmp_path):
    next(small_run(tmp_path)[1])
    with pytest.raises(ValueError, match=r"its training is lr=0.01, this run's is lr=0.5\. Choose"):
        next(small_run(tmp_path, lr=0.5, micro_batch=1)[1])
    with pytest.raises(ValueError, match=r"holds another run: it has other prompts\. Choose"):
        next(align(load_model("tiny-sd"), DDPO(DDPOConfig(steps=3, guidance=1.0, tracker_least=2)), brightness(),
                   ["a cow"], TRAINING, seed=3, out=tmp_path))
    with pytest.raises(ValueError, match=r"its config is steps=3, .*this run's is steps=2"):
        next(align(load_model("tiny-sd"), DDPO(CONFIG), brightness(), PROMPTS, TRAINING, seed=3, out=tmp_path))


@pytest.mark.parametrize("gone", ["updates", "optimiser", "snapshots", "policy", "technique"])
def test_a_checkpoint_that_lacks_a_part(tmp_path, gone):
    next(small_run(tmp_path)[1])
    state = load_checkpoint(tmp_path / "checkpoint")
    del state[gone]
    save_checkpoint(tmp_path / "checkpoint", state)
    with pytest.raises(ValueError, match=rf"checkpoint does not fit this run or is damaged .*{gone}.*delete it"):
        next(small_run(tmp_path)[1])


@pytest.mark.truth
@pytest.mark.parametrize("changed", [{"micro_batch": 1}, {"sample_batch": 3}])
def test_a_run_goes_on_with_other_settings_of_memory_to_the_same_weights(tmp_path, changed):
    """Up to the rounding of sums in another order, as between micro-batches of one run."""
    model, steps = small_run()
    straight = weights_after(steps, model)
    next(small_run(tmp_path)[1])
    model, steps = small_run(tmp_path, **changed)
    assert largest(straight, weights_after(steps, model)) < 1e-4


# -- what was given
@pytest.mark.parametrize(("changed", "words"), [
    ({"technique": "ddpo"}, "technique is a str; give an object"),
    ({"technique": DDPO}, "technique is the class DDPO; give an object"),
    ({"technique": BestOfN()}, "a sampler trains nothing"),
    ({"technique": RWR(CONFIG)}, "rwr: its config is a DDPOConfig; give a RWRConfig"),
    ({"model": "tiny-sd"}, "model is a str; give a DiffusionModel: load_model"),
    ({"training": {"lr": 1e-3}}, "training is a dict; give a Training: Training"),
    ({"training": preset("ddpo", "rehearsal")}, r"training is a Preset; give a Training: its \.training"),
    ({"prompts": "a cat"}, r"prompts is one text; give a list: \['a cat'\]"),
    ({"prompts": ["a cat", 3]}, "one of the prompts is a int: 3"),
])
def test_things_of_another_type(changed, words):
    given = {"model": load_model("tiny-sd"), "technique": DDPO(CONFIG), "prompts": PROMPTS, "training": TRAINING}
    with pytest.raises(TechniqueError, match=words):
        next(align(**given | changed, signal=brightness()))


def test_an_adapter_of_another_rank_or_alpha_is_not_trained_in_silence():
    model = load_model("tiny-sd")
    add_lora(model, 4, 8)
    for changed in ({}, {"lora_rank": 4}):
        with pytest.raises(TechniqueError, match=r"rank 4 and alpha 8 already.*load_model.*lora_rank=4, lora_alpha=8"):
            prepare_weights(model, dataclasses.replace(TRAINING, **changed), 0)
    prepare_weights(model, dataclasses.replace(TRAINING, lora_rank=4, lora_alpha=8.0), 0)


@pytest.mark.parametrize("file", ["checkpoint/state.json", "checkpoint/tensors.safetensors", "identity.json"])
def test_a_damaged_folder(tmp_path, file):
    next(small_run(tmp_path)[1])
    (tmp_path / file).write_text("{")
    with pytest.raises(ValueError, match=r"damaged"):
        next(small_run(tmp_path)[1])


def test_a_folder_of_another_version(tmp_path):
    next(small_run(tmp_path)[1])
    identity = json.loads((tmp_path / "identity.json").read_text())
    (tmp_path / "identity.json").write_text(json.dumps({**identity, "format": 99}))
    with pytest.raises(ValueError, match="holds a run of format 99"):
        next(small_run(tmp_path)[1])


def test_nothing_is_pickled(tmp_path):
    list(small_run(tmp_path)[1])
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".lock", ""}


def test_training_repr_is_complete():
    assert "lora_targets" in repr(Training())
