"""The same numbers as trl: each loss on the same log-probabilities, and once the whole path of its DPOTrainer."""

import collections
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Preferences
from genjax.families.alignment.preference import PreferenceOptimization
from genjax.families.alignment.preference_losses import DPO, IPO, KTO, ORPO, Hinge, PairScores, SimPO
from genjax.families.alignment.reward import bradley_terry_loss
from genjax.families.language.gpt import GPT
from genjax.pretrained import load_pretrained

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

B, T = 4, 6
RNG = np.random.default_rng(0)
#: Log-probabilities of the targets of chosen and rejected answers, under policy and reference; which targets count.
TOKENS = -RNG.gamma(2.0, 1.0, (2, 2 * B, T))
MASK = np.arange(T + 1)[None] >= RNG.integers(2, 5, 2 * B)[:, None]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def summed(which: int) -> np.ndarray:
    return (TOKENS[which] * MASK[:, 1:]).sum(1)


def scores() -> PairScores:
    (a, b), (c, d), (n, m) = (np.split(v, 2) for v in (summed(0), summed(1), MASK[:, 1:].sum(1)))
    return PairScores(*(jnp.asarray(v, jnp.float64) for v in (a, b, c, d, n, m)))


class Accelerator:
    """What trl asks of several processes, for one."""

    device = "cpu"
    gather = gather_for_metrics = staticmethod(lambda value: value)
    unwrap_model = staticmethod(lambda model: model)


def network(which: int, mask: np.ndarray = MASK, tokens: np.ndarray = TOKENS):
    """A stand-in for a model of transformers, whose log-probabilities are given."""
    values = torch.tensor(np.where(mask[:, 1:], tokens[which], 0.0))
    out = {name: torch.zeros(values.shape, dtype=torch.float64) for name in ("entropy", "mean_logits", "is_top1")}
    out["is_top1"] = out["is_top1"].bool()
    return lambda **unused: types.SimpleNamespace(log_probs=values, **out)


def stand_in(**fields):
    base = {
        "accelerator": Accelerator(),
        "args": types.SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
        "model": types.SimpleNamespace(training=False),
        "aux_loss_enabled": False,
        "_metrics": collections.defaultdict(lambda: collections.defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "precompute_ref_logps": False,
    }
    return types.SimpleNamespace(**{**base, **fields})


def inputs():
    ones = torch.ones(2 * B, T + 1, dtype=torch.long)
    return {"input_ids": ones, "attention_mask": ones, "completion_mask": torch.tensor(MASK.astype(int))}


@pytest.mark.parametrize(
    ("kind", "ours", "smoothing"),
    [
        ("sigmoid", DPO(beta=0.3), 0.0),
        ("hinge", Hinge(beta=0.3), 0.0),
        ("ipo", IPO(beta=0.3), 0.0),
        ("robust", DPO(beta=0.3, label_smoothing=0.2, robust=True), 0.2),
    ],
)
def test_losses_of_dpo(kind, ours, smoothing, monkeypatch):
    module = __import__("trl.trainer.dpo_trainer", fromlist=["x"])
    monkeypatch.setattr(module, "is_peft_model", lambda model: False)
    monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *unused: torch.no_grad())
    self = stand_in(
        ref_model=network(1), ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0],
        beta=0.3, label_smoothing=smoothing, use_weighting=False,
    )  # fmt: skip
    theirs = trl.DPOTrainer._compute_loss(self, network(0), inputs(), False)
    np.testing.assert_allclose(ours(scores()).mean(), theirs.item(), rtol=1e-12)
    # There is no label smoothing in its sigmoid loss: that of ours is Mitchell's, checked by the equation.


def test_loss_of_kto(monkeypatch):
    module = __import__("trl.trainer.kto_trainer", fromlist=["x"])
    monkeypatch.setattr(module, "is_peft_model", lambda model: False)
    monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *unused: torch.no_grad())
    drift = np.array([0.9, -0.2, 1.1, 0.4])
    logps = {0: torch.tensor(drift), 1: torch.zeros(4, dtype=torch.float64)}
    policy, reference = network(0), network(1)
    self = stand_in(
        ref_model=reference, calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5,
        _compute_kl_logps=lambda model, batch: logps[0 if model is policy else 1],
    )  # fmt: skip
    batch = {**inputs(), "label": torch.tensor([True] * B + [False] * B)}
    theirs = trl.KTOTrainer._compute_loss(self, policy, batch, False)
    ours = KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)(scores()._replace(drift=drift.mean()))
    np.testing.assert_allclose(ours.mean(), theirs.item(), rtol=1e-12)


def test_losses_of_orpo_and_simpo():
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    s = scores()
    means = [torch.tensor(np.asarray(m)) for m in s.means]
    self = stand_in(beta=0.4)
    odds = ORPOTrainer.odds_ratio_loss(self, *means)[0]
    ours = ORPO(weight=0.4)(s) + s.means[0]
    np.testing.assert_allclose(ours, -odds.numpy(), rtol=2e-5)  # it computes in float32
    self = stand_in(beta=2.0, alpha=0.0, loss_type="simpo", simpo_gamma=0.5, label_smoothing=0.0)
    np.testing.assert_allclose(SimPO(beta=2.0, gamma=0.5)(s), CPOTrainer.cpo_loss(self, *means)[0].numpy(), rtol=1e-12)


def test_loss_of_reward_models():
    rewards, margin = RNG.normal(size=2 * B), RNG.normal(size=B)
    self = stand_in(args=types.SimpleNamespace(center_rewards_coefficient=0.01))
    model = lambda **unused: types.SimpleNamespace(logits=torch.tensor(rewards)[:, None])
    theirs = trl.RewardTrainer.compute_loss(self, model, {"margin": torch.tensor(margin)})
    chosen, rejected = (jnp.asarray(r) for r in np.split(rewards, 2))
    ours = bradley_terry_loss(chosen, rejected, jnp.asarray(margin), 0.01)
    np.testing.assert_allclose(ours.mean(), theirs.item(), rtol=1e-12)


PAIRS = [
    {"prompt": "The film was", "chosen": " a joy to watch", "rejected": " dull"},
    {"prompt": "A song of", "chosen": " love", "rejected": " noise and more noise"},
    {"prompt": "We met in", "chosen": " Rome", "rejected": " a long, long queue"},
    {"prompt": "Bread and", "chosen": " butter it is", "rejected": " x"},
]


def test_the_whole_path_of_a_trainer(tmp_path):
    """Tokens, ends, padding, log-probabilities and loss of text pairs, as a DPOTrainer has them."""
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    from genjax.data.text.tokenizer import train_tokenizer

    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_str(train_tokenizer("bpe", [str(PAIRS)], 300).library)
    library.add_special_tokens(["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    end = tokenizer.eos_token_id
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    networks = {}
    for number, name in enumerate(("policy", "reference")):
        torch.manual_seed(number)
        networks[name] = transformers.GPT2LMHeadModel(config)
        for parameter in networks[name].parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        networks[name].save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    trainer = trl.DPOTrainer(
        model=networks["policy"].eval(),
        ref_model=networks["reference"].eval(),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "out"), beta=0.3, per_device_train_batch_size=len(PAIRS), report_to=[],
            use_cpu=True, bf16=False, gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )  # fmt: skip
    (batch,) = list(trainer.get_train_dataloader())
    trainer.model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, batch).item()

    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    data = Preferences(name="pairs", dir=str(tmp_path), sequence_length=40).starting_from(tmp_path / "policy")
    rows = {name: jnp.asarray(a) for name, a in data.load_split("train").arrays().items()}
    # The same tokens, whatever their order.
    own = lambda tokens, mask: sorted(tuple(np.asarray(t)[np.asarray(m)].tolist()) for t, m in zip(tokens, mask))
    ours_tokens = own([*rows["tokens"], *rows["rejected"]], [*rows["mask"], *rows["rejected_mask"]])
    assert ours_tokens == own(batch["input_ids"].numpy(), batch["attention_mask"].numpy().astype(bool))
    loaded = {name: load_pretrained(tmp_path / name) for name in networks}
    policy = loaded["policy"].model
    assert isinstance(policy, GPT)
    model = PreferenceOptimization(policy=policy, method=DPO(beta=0.3))
    model = dataclasses.replace(model, policy=dataclasses.replace(policy, pretrained=str(tmp_path / "policy")))
    with jax.enable_x64(False):
        state = model.init(jax.random.key(0), rows)
        state = state.replace(params=model.pretrained_params(state.params), step=state.step + 1)
        state = state.replace(extra={"reference": loaded["reference"].params})
        ours = float(model.evaluate(state, rows, jax.random.key(0))["loss"].mean())
    assert abs(ours - np.log(2.0)) > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
