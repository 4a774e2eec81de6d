"""A policy over 15 sequences whose expectations are sums: three tokens, of which 0 ends, and at most three places.

It is a table of logits for each of the seven prefixes, and has what policy optimisation asks of a policy.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.decoding import Sampling
from genjax.optimizers import SGD

SIZE = 3
#: Tokens of each sequence, filled with 0 behind its end; and its length, the end token included.
SEQUENCES = sorted({(*row[: row.index(0)], *(0 for _ in row[row.index(0) :])) if 0 in row else row
                    for row in itertools.product(range(3), repeat=SIZE)})  # fmt: skip
LENGTHS = [row.index(0) + 1 if 0 in row else SIZE for row in SEQUENCES]
PREFIXES = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]
#: Row of the table for each place of each sequence; 0 behind its end.
PLACES = [[PREFIXES.index(row[:i]) if row[:i] in PREFIXES else 0 for i in range(SIZE)] for row in SEQUENCES]


class Tabular:
    """Params are a table of logits [7, 3]; a row of tokens is the start token and a sequence."""

    sampling = Sampling()
    sequence_length = SIZE
    pretrained = None
    optimizer = SGD()

    def token_log_probs(self, params, batch, temperature=1.0):
        tokens = batch["tokens"][:, 1:]
        same = (tokens[:, None] == jnp.array(SEQUENCES)[None]).all(-1)  # [B, 15]
        prefixes = jnp.array(PLACES)[same.argmax(1)]
        log_probs = jax.nn.log_softmax(params / temperature)
        return jnp.take_along_axis(log_probs[prefixes], tokens[..., None], axis=-1)[..., 0]

    def shares_prompts(self, prompt_length, answer_length):
        return False

    def trained_params(self, params):
        return params


def experience(index, old=None, reference=None):
    """The experience of sequences by number [R]: what `PolicyOptimization.experience` gives, without advantages."""
    tokens, lengths = jnp.array(SEQUENCES)[index], jnp.array(LENGTHS)[index]
    rows = {"tokens": jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=0)}
    found = {"rows": rows, "prompt_lengths": jnp.ones_like(lengths), "mask": jnp.arange(SIZE)[None] < lengths[:, None]}
    for name, params in (("old_log_probs", old), ("reference_log_probs", reference)):
        if params is not None:
            found[name] = Tabular().token_log_probs(params, rows)
    return found


def log_probs(params):
    """Log-probability of each of the 15 sequences."""
    found = experience(jnp.arange(len(SEQUENCES)))
    return jnp.where(found["mask"], Tabular().token_log_probs(params, found["rows"]), 0.0).sum(1)


@functools.partial(jax.jit, static_argnums=0)
def expected_gradient(method, params, rewards, reference, old=None):
    """Expectation of the gradient of a method's loss over all groups of its number of answers, [7, 3].

    `old` are the parameters of the policy that draws the answers.
    """
    drawing = params if old is None else old
    groups = jnp.array(list(itertools.product(range(len(SEQUENCES)), repeat=method.num_rollouts)))

    def gradient(group):
        found = method.with_advantages(None, experience(group, drawing, reference), rewards[group])
        found["weights"] = method.weights(found["mask"])
        return jax.grad(lambda p: method.loss(p, found, None)[0])(params)

    weights = jnp.exp(log_probs(drawing)[groups].sum(1))
    return jnp.tensordot(weights, jax.vmap(gradient)(groups), 1)


def objective(params, rewards, reference, beta):
    """The negative of what policy optimisation maximises."""
    own, base = log_probs(params), log_probs(reference)
    return (jnp.exp(own) * (beta * (own - base) - rewards)).sum()


def residual(found, true):
    """What is left of a gradient after the best multiple of the true one, as a share of the true one's length."""
    found, true = np.ravel(found), np.ravel(true)
    scale = found @ true / (found @ found)
    return np.linalg.norm(scale * found - true) / np.linalg.norm(true)


def cosine(found, true):
    found, true = np.ravel(found), np.ravel(true)
    return found @ true / np.linalg.norm(found) / np.linalg.norm(true)


_RANDOM = np.random.default_rng(0)
PARAMS, REFERENCE = (0.8 * _RANDOM.normal(size=(7, 3)) for _ in range(2))
REWARDS = _RANDOM.normal(size=15)
