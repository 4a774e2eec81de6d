"""Hidden Markov models of music and text."""

from __future__ import annotations

from genjax.config import register
from genjax.data import PianoRolls, Text, TimeSeries
from genjax.families.markov.hidden_key import HiddenKeyModel
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.families.markov.linear_gaussian import LinearGaussianModel
from genjax.families.markov.ngram_model import NGramModel
from genjax.nn.emissions import AutoregressiveBernoulli, Bernoulli, Categorical, Mixture
from genjax.training import Experiment, Training

_CHORDS = {"data.name": "chords", "data.batch_size": 16, "model.num_states": 4, "data.max_frames": 8}


def _rolls(model: HiddenMarkovModel, name: str, num_steps: int, **fields) -> Experiment:
    # Baum-Welch takes the whole training set as its batch: 229 chorales, or 64 embedded pieces.
    data = PianoRolls(name=name, batch_size=64 if name == "chords" else 229, eval_batch_size=80, **fields)
    training = Training(
        num_steps=num_steps,
        log_every=5,
        checkpoint_every=num_steps,
        evaluate_every=max(num_steps // 4, 1),
        best_metric="nll_per_frame",
        num_samples=8,
    )
    return Experiment(model=model, data=data, training=training)


@register(
    "hmm_chords",
    source="Rabiner 1989, doi:10.1109/5.18626",
    shrunk=_CHORDS,
)
def hmm_chords() -> Experiment:
    """Baum-Welch on embedded chord progressions, four restarts.

    python -m experiments.train --experiment=hmm_chords --workdir=runs/hmm_chords
    """
    return _rolls(HiddenMarkovModel(num_states=32, num_restarts=4), "chords", 50)


@register(
    "hmm_jsb",
    source="Rabiner 1989, doi:10.1109/5.18626; data of Boulanger-Lewandowski et al. 2012, arXiv:1206.6392",
    shrunk=_CHORDS,
)
def hmm_jsb() -> Experiment:
    """Baum-Welch on Bach's chorales with independent notes in each of 128 states, the best of six random starts.

    python -m experiments.train --experiment=hmm_jsb --data.dir=path/to/folder --workdir=runs/hmm_jsb

    About 100 seconds of CPU.  The six starts end between 6.59 and 6.75 nats a frame on the test split.
    """
    model = HiddenMarkovModel(
        num_states=128, num_restarts=6, emission=Bernoulli(pseudo_count=0.1), transition_pseudo_count=0.05
    )
    return _rolls(model, "jsb_chorales", 30)


@register(
    "hmm_patterns_jsb",
    source="Rabiner 1989, section IV.A; data of Boulanger-Lewandowski et al. 2012, arXiv:1206.6392",
    shrunk={**_CHORDS, "model.emission.num_components": 2},
)
def hmm_patterns_jsb() -> Experiment:
    """States that emit mixtures of note patterns, learned by stochastic EM on chorales shifted by up to six semitones.

    A second of CPU a step.

    python -m experiments.train --experiment=hmm_patterns_jsb --data.dir=path/to/folder --workdir=runs/patterns
    """
    model = HiddenMarkovModel(
        num_states=128,
        emission=Mixture(component=Bernoulli(pseudo_count=0.01), num_components=4),
        algorithm="stochastic_em",
        transition_pseudo_count=0.02,
    )
    return _rolls(model, "jsb_chorales", 100, transpose=6)


@register(
    "hmm_keys_jsb",
    source="Rabiner 1989, section IV.B; data of Boulanger-Lewandowski et al. 2012, arXiv:1206.6392",
    shrunk={**_CHORDS, "model.num_keys": 2, "model.num_restarts": 2},
)
def hmm_keys_jsb() -> Experiment:
    """Autoregressive notes from 96 states, in a key that is hidden too; five restarts predict together.

    142 CPU seconds.

    python -m experiments.train --experiment=hmm_keys_jsb --data.dir=path/to/folder --workdir=runs/hmm_keys_jsb
    """
    model = HiddenKeyModel(
        num_states=96,
        emission=AutoregressiveBernoulli(pseudo_count=0.03, pooled_count=3.0),
        num_restarts=5,
        transition_pseudo_count=0.1,
    )
    return _rolls(model, "jsb_chorales", 16)


@register(
    "hmm_gibbs_chords",
    source="Scott 2002, doi:10.1198/016214502753479464",
    shrunk=_CHORDS,
)
def hmm_gibbs_chords() -> Experiment:
    """Gibbs sampling with Dirichlet and Beta priors.

    python -m experiments.train --experiment=hmm_gibbs_chords --workdir=runs/hmm_gibbs_chords
    """
    return _rolls(HiddenMarkovModel(num_states=16, algorithm="gibbs"), "chords", 100)


@register(
    "hmm_text",
    source="Rabiner 1989, doi:10.1109/5.18626; Cappé & Moulines 2009, arXiv:0712.4273",
    shrunk={"data.batch_size": 16, "data.sequence_length": 16, "model.num_states": 4},
)
def hmm_text() -> Experiment:
    """Characters of Python's help from 64 states, by stochastic EM.

    python -m experiments.train --experiment=hmm_text --workdir=runs/hmm_text
    """
    model = HiddenMarkovModel(num_states=64, emission=Categorical(), algorithm="stochastic_em")
    data = Text(name="python_topics", sequence_length=128, batch_size=64)
    return Experiment(model=model, data=data, training=Training(num_steps=300, log_every=20, checkpoint_every=100))


@register(
    "kalman_waves",
    source="Shumway & Stoffer 1982, doi:10.1111/j.1467-9892.1982.tb00349.x",
    shrunk={"data.batch_size": 16, "data.sequence_length": 8, "model.state_dim": 2},
)
def kalman_waves() -> Experiment:
    """Linear Gaussian state space of sums of two sines with noise, by EM.  Half a minute of CPU.

    python -m experiments.train --experiment=kalman_waves --workdir=runs/kalman_waves
    python -m experiments.states --workdir=runs/kalman_waves
    """
    data = TimeSeries(name="waves", batch_size=512)
    training = Training(num_steps=200, log_every=20, checkpoint_every=200, num_samples=16)
    return Experiment(model=LinearGaussianModel(state_dim=4), data=data, training=training)


@register(
    "kneser_ney_shakespeare",
    source="Chen & Goodman 1999, doi:10.1006/csla.1999.0128",
    shrunk={
        "data.name": "python_topics",
        "data.sequence_length": 16,
        "data.batch_size": 8,
        "model.order": 3,
        "model.capacity": 2048,
    },
)
def kneser_ney_shakespeare() -> Experiment:
    """Modified Kneser-Ney 5-grams of the characters of tiny-shakespeare.  Four steps see each window once.

    python -m experiments.train --experiment=kneser_ney_shakespeare --data.dir=path/to/tfds --workdir=runs/kneser_ney
    python -m experiments.evaluate --workdir=runs/kneser_ney --evaluation.split=validation+test
    """
    data = Text(name="tiny_shakespeare", sequence_length=1000, batch_size=251, eval_batch_size=128)
    training = Training(num_steps=4, log_every=1, checkpoint_every=4, num_samples=4)
    return Experiment(model=NGramModel(order=5, capacity=2**19), data=data, training=training)
