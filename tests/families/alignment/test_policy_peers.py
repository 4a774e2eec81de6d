"""Losses and their gradients beside those of trl's trainers on the same log-probabilities, in double precision."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.decoding import Sampling
from genjax.families.alignment import advantages
from genjax.families.alignment.grpo import GRPO, GSPO
from genjax.families.alignment.rloo import RLOO
from genjax.optimizers import SGD

RANDOM = np.random.default_rng(0)
ROWS, SIZE = 6, 5
MASK = np.arange(SIZE)[None] < np.array([5, 1, 3, 4, 2, 5])[:, None]
LOG_PROBS = -RANDOM.uniform(0.1, 2.0, (ROWS, SIZE))
OLD = LOG_PROBS + 0.4 * RANDOM.normal(size=LOG_PROBS.shape)
REFERENCE = LOG_PROBS + 0.4 * RANDOM.normal(size=LOG_PROBS.shape)
ADVANTAGES = RANDOM.normal(size=ROWS)


class Scores:
    """A policy whose parameters are the log-probabilities themselves."""

    sampling, optimizer, pretrained, sequence_length = Sampling(), SGD(), None, SIZE
    # With experts, sources are left as they are; here there are none.
    encoder = types.SimpleNamespace(experts=object())

    def token_log_probs(self, params, batch, temperature=1.0):
        return params


class Stand(types.SimpleNamespace):
    """What the losses of trl ask of a trainer."""

    def __init__(self, torch, **fields):
        gather = types.SimpleNamespace(
            gather=lambda a: a, reduce=lambda a, reduction: a, num_processes=1, gather_for_metrics=lambda a: a
        )
        arguments = types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
        super().__init__(
            model=types.SimpleNamespace(training=True), accelerator=gather, args=arguments, aux_loss_enabled=False,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
            current_gradient_accumulation_steps=1,
            vllm_importance_sampling_correction=False, _entropy_bonus_enabled=False, max_completion_length=SIZE,
            _metrics=collections.defaultdict(lambda: collections.defaultdict(list)), **fields,
        )  # fmt: skip
        self.log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
        self._get_per_token_logps_and_entropies = lambda *a, **k: (
            self.log_probs,
            torch.zeros(ROWS, SIZE).double(),
            None,
        )


def theirs(trainer, torch, stand, **more):
    tensor = lambda a: torch.tensor(np.asarray(a))
    inputs = {
        "prompt_ids": torch.ones(ROWS, 1).long(), "prompt_mask": torch.ones(ROWS, 1).long(),
        "advantages": tensor(ADVANTAGES),
        "completion_ids": torch.ones(ROWS, SIZE).long(), "completion_mask": tensor(MASK).long(), **more,
    }  # fmt: skip
    loss = trainer._compute_loss(stand, stand.model, inputs)
    loss.backward()
    return loss.item(), stand.log_probs.grad.numpy()


def ours(method):
    of_tokens = {"advantages": jnp.broadcast_to(ADVANTAGES[:, None], MASK.shape), "mask": jnp.asarray(MASK)}
    scores = {"old_log_probs": OLD, "reference_log_probs": REFERENCE}
    found = {"rows": {"source": None}, "prompt_lengths": None, **of_tokens, **scores}
    found["weights"] = method.weights(found["mask"])
    return jax.value_and_grad(lambda p: method.loss(p, found, None)[0])(jnp.asarray(LOG_PROBS))


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", [GRPO, GSPO])
@pytest.mark.parametrize(
    "loss_type, normalization", [("grpo", "answer"), ("bnpo", "tokens"), ("dapo", "tokens"), ("dr_grpo", "longest")]
)
def test_losses_of_grpo_equal_those_of_trl(loss_type, normalization, kind, beta):
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").GRPOTrainer
    level = "token" if kind is GRPO else "sequence"
    stand = Stand(
        torch, loss_type=loss_type, importance_sampling_level=level, beta=beta, epsilon_low=0.2, epsilon_high=0.28
    )
    more = {"old_per_token_logps": torch.tensor(OLD), "ref_per_token_logps": torch.tensor(REFERENCE)}
    expected = theirs(trainer, torch, stand, num_items_in_batch=torch.tensor(MASK.sum()), **more)
    fields = {"normalization": normalization, "beta": beta, "kl": "token_k3", "clip_low": 0.2, "clip_high": 0.28}
    with jax.enable_x64(True):
        found = ours(kind(policy=Scores(), num_epochs=2, **fields))
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=1e-14)


def test_the_loss_of_rloo_equals_that_of_trl():
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").RLOOTrainer
    stand = Stand(torch, epsilon_low=0.2, epsilon_high=0.2)
    expected = theirs(trainer, torch, stand, old_logps=torch.tensor((OLD * MASK).sum(1)))
    with jax.enable_x64(True):
        found = ours(RLOO(policy=Scores(), num_epochs=2, beta=0.0))
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=1e-14)


def test_group_advantages_equal_the_formula_of_trl():
    torch = pytest.importorskip("torch")
    rewards = RANDOM.normal(size=(4, 3))
    groups = torch.tensor(rewards)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(advantages.group_advantages(jnp.asarray(rewards), "group"), expected, atol=1e-5)
