"""Recurrent models of characters, molecules and music."""

from genjax.config import register
from genjax.data import Molecules, PianoRolls, PythonSource, Text, TimeSeries, TokenPairs
from genjax.families.recurrent.attention import AttentionSequenceModel
from genjax.families.recurrent.boltzmann_machine import RecurrentBoltzmannMachine
from genjax.families.recurrent.labelling import SequenceLabeller
from genjax.families.recurrent.language import RecurrentLanguageModel
from genjax.families.recurrent.mixture_density import MixtureDensityModel
from genjax.families.recurrent.piano_roll import PianoRollModel, RollModel
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import Adam, AdamW, Cosine, Piecewise
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.network.hidden_dim": 8,
    "model.network.num_layers": 1,
    "model.embedding_dim": 8,
    "data.name": "python_topics",
    "data.sequence_length": 16,
    "data.batch_size": 16,
    "evaluation.split": "test",
    "evaluation.validation_split": "validation",
    "evaluation.num_examples": 100,
}
_SHRUNK_ROLLS = {"model.network.hidden_dim": 8, "data.name": "chords", "data.max_frames": 8, "data.batch_size": 16}


def _shakespeare(model: RecurrentLanguageModel, data: Text, num_steps: int) -> Experiment:
    return Experiment(
        model=model,
        data=data,
        training=Training(
            num_steps=num_steps, evaluate_every=500, checkpoint_every=500, best_metric="nll_per_token", num_samples=4
        ),
        # TFDS divides 90/5/5; the two small parts together are the last tenth, nanoGPT's validation text.
        evaluation=Evaluation(split="validation+test", validation_split="validation+test"),
    )


@register(
    "lstm_shakespeare",
    source="char-rnn (Karpathy 2015), with truncated back-propagation through time",
    shrunk=_SHRUNK,
)
def lstm_shakespeare() -> Experiment:
    """Two LSTM layers of 512 whose states go on from batch to batch.

    python -m experiments.train --experiment=lstm_shakespeare --data.dir=TFDS_DIRECTORY --workdir=runs/lstm_shakespeare

    Minutes on one GPU, about an hour on two CPU cores.
    """
    model = RecurrentLanguageModel(
        embedding_dim=128,
        network=Recurrent(cell="lstm", num_layers=2, hidden_dim=512, dropout=0.3),
        output_dropout=0.3,
        carry_state=True,
        optimizer=Adam(learning_rate=2e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=100, final_scale=0.05)),
    )
    data = Text(name="tiny_shakespeare", sequence_length=128, batch_size=32, order="contiguous", eval_batch_size=64)
    return _shakespeare(model, data, 5000)


@register(
    "min_gru_shakespeare",
    source="Feng et al. 2024, arXiv:2410.01201: minGRU reaches 1.548",
    shrunk={**_SHRUNK, "data.stride": None, "model.network.mlp_dim": 8},
)
def min_gru_shakespeare() -> Experiment:
    """Three residual minGRU layers of 384, computed by an associative scan.

    python -m experiments.train --experiment=min_gru_shakespeare --data.dir=TFDS_DIRECTORY --workdir=runs/min_gru

    Minutes on one GPU.
    """
    model = RecurrentLanguageModel(
        embedding_dim=384,
        network=Recurrent(cell="min_gru", num_layers=3, hidden_dim=384, residual=True, mlp_dim=1536, dropout=0.2),
        output_dropout=0.2,
        optimizer=AdamW(
            learning_rate=1e-3,
            b2=0.99,
            weight_decay=0.1,
            clip_norm=0.25,
            schedule=Cosine(warmup_steps=100, final_scale=0.1),
        ),
    )
    return _shakespeare(model, Text(name="tiny_shakespeare", sequence_length=256, batch_size=64, stride=1), 5000)


@register(
    "char_rnn_molecules",
    source="CharRNN of MOSES (Polykovskiy et al. 2020, arXiv:1811.12823)",
    shrunk={"model.network.hidden_dim": 8, "model.network.num_layers": 1, "model.embedding_dim": 8,
            "data.name": "combinations", "data.batch_size": 16},
)  # fmt: skip
def char_rnn_molecules() -> Experiment:
    """Three LSTM layers of 768 on MOSES (files at --data.dir); --data.name=combinations needs no file.

    python -m experiments.train --experiment=char_rnn_molecules --data.dir=MOSES_DIRECTORY --workdir=runs/char_rnn

    80 epochs of batches of 64, as in the paper, of its training molecules but the 10000 for
    validation; hours on one GPU.
    """
    halvings = tuple(i / 8 for i in range(1, 8))
    model = RecurrentLanguageModel(
        embedding_dim=768,
        network=Recurrent(cell="lstm", num_layers=3, hidden_dim=768, dropout=0.2),
        optimizer=Adam(learning_rate=1e-3, schedule=Piecewise(boundaries=halvings, scale=0.5)),
    )
    return Experiment(
        model=model,
        data=Molecules(name="moses", batch_size=64),
        training=Training(num_steps=80 * 1574663 // 64, steps_per_dispatch=10, checkpoint_every=10_000),
    )


def _chorales(model: RollModel, num_steps: int, metric: str = "nll_per_frame", every: int = 100) -> Experiment:
    return Experiment(
        model=model,
        data=PianoRolls(name="jsb_chorales", batch_size=16, transpose=6, eval_batch_size=77),
        training=Training(
            num_steps=num_steps,
            steps_per_dispatch=10,
            evaluate_every=every,
            checkpoint_every=every,
            best_metric=metric,
            num_samples=8,
        ),
    )


@register(
    "lstm_chorales",
    source="Boulanger-Lewandowski et al. 2012, arXiv:1206.6392; LSTM of Chung et al. 2014",
    shrunk=_SHRUNK_ROLLS,
)
def lstm_chorales() -> Experiment:
    """An LSTM with independent notes on the JSB chorales (jsb_chorales.npz at --data.dir).

    python -m experiments.train --experiment=lstm_chorales --data.dir=FOLDER --workdir=runs/lstm_chorales

    About a minute on two CPU cores.
    """
    model = PianoRollModel(
        network=Recurrent(cell="lstm", hidden_dim=256),
        output_dropout=0.3,
        optimizer=Adam(learning_rate=1e-2, clip_norm=1.0, schedule=Cosine(warmup_steps=50, final_scale=0.05)),
    )
    return _chorales(model, 2000)


@register(
    "rnn_nade_chorales",
    source="RNN-NADE (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392): 5.56 nats",
    shrunk={**_SHRUNK_ROLLS, "model.nade_dim": 8},
)
def rnn_nade_chorales() -> Experiment:
    """An LSTM whose frames are drawn note by note, on the JSB chorales (jsb_chorales.npz at --data.dir).

    python -m experiments.train --experiment=rnn_nade_chorales --data.dir=FOLDER --workdir=runs/rnn_nade_chorales

    About six minutes on one CPU core.
    """
    model = PianoRollModel(
        network=Recurrent(cell="lstm", hidden_dim=256),
        output="nade",
        nade_dim=128,
        output_dropout=0.3,
        optimizer=Adam(learning_rate=3e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=20, final_scale=0.02)),
    )
    return _chorales(model, 3000)


@register(
    "rnn_rbm_chorales",
    source="RNN-RBM (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392): 6.27 nats",
    shrunk={
        **_SHRUNK_ROLLS,
        "model.num_hidden": 4,
        "model.num_gibbs_steps": 2,
        "model.num_sampling_steps": 2,
        "model.num_temperatures": 4,
        "model.num_importance_chains": 2,
    },
)
def rnn_rbm_chorales() -> Experiment:
    """An LSTM that tells the biases of an RBM over the notes of each frame, on the JSB
    chorales (see rnn_nade_chorales).

    python -m experiments.train --experiment=rnn_rbm_chorales --data.dir=FOLDER --workdir=runs/rnn_rbm_chorales

    About ten minutes of CPU, of which each of the six evaluations takes 20 seconds: they estimate the likelihood of
    every frame (nll_ais_per_frame).  The paper's recurrent layer is --model.network.cell=rnn.
    """
    model = RecurrentBoltzmannMachine(
        network=Recurrent(cell="lstm", hidden_dim=256),
        output_dropout=0.3,
        optimizer=Adam(learning_rate=3e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=20, final_scale=0.02)),
    )
    return _chorales(model, 3000, "nll_ais_per_frame", every=500)


@register(
    "attention_reversal",
    source="Bahdanau et al. 2015, arXiv:1409.0473; Luong et al. 2015 with --model.score=multiplicative",
    shrunk={"model.embedding_dim": 8, "model.hidden_dim": 8, "model.encoder.hidden_dim": 8, "data.batch_size": 16},
)
def attention_reversal() -> Experiment:
    """A recurrent encoder-decoder with attention that learns to reverse sequences.

    python -m experiments.train --experiment=attention_reversal --workdir=runs/attention_reversal

    About half a minute on one CPU core.
    """
    return Experiment(
        model=AttentionSequenceModel(),
        data=TokenPairs(name="reversal", batch_size=64),
        training=Training(num_steps=2000, steps_per_dispatch=20, evaluate_every=500, num_samples=8),
    )


@register(
    "mixture_density_waves",
    source="Graves 2013, arXiv:1308.0850, section 4, on made series",
    shrunk={"model.network.hidden_dim": 8, "data.batch_size": 16, "data.sequence_length": 12},
)
def mixture_density_waves() -> Experiment:
    """An LSTM with a mixture density output on noisy sums of sines; forecasts have intervals.

    python -m experiments.train --experiment=mixture_density_waves --workdir=runs/mixture_density_waves
    python -m experiments.forecast --workdir=runs/mixture_density_waves --horizon=24

    About twenty seconds on one CPU core.  Pen strokes as of handwriting: --data.name=strokes --model.correlated=true
    --model.num_components=20 --data.sequence_length=150.
    """
    return Experiment(
        model=MixtureDensityModel(optimizer=Adam(learning_rate=3e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=20))),
        data=TimeSeries(name="waves", batch_size=64),
        training=Training(num_steps=1500, steps_per_dispatch=20, evaluate_every=500, num_samples=16),
    )


@register(
    "label_python_source",
    source="bidirectional LSTM with a linear-chain field (Huang et al. 2015, arXiv:1508.01991)",
    shrunk={"model.network.hidden_dim": 8, "model.embedding_dim": 8, "data.sequence_length": 16, "data.batch_size": 16,
            "evaluation.num_examples": 100},
)  # fmt: skip
def label_python_source() -> Experiment:
    """Lexical classes of the characters of Python modules, by a bidirectional LSTM and a chain of labels.

    python -m experiments.train --experiment=label_python_source --workdir=runs/label_python_source

    About half a minute on one CPU core.
    """
    return Experiment(
        model=SequenceLabeller(
            optimizer=Adam(learning_rate=5e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=20, final_scale=0.05))
        ),
        data=PythonSource(batch_size=32),
        training=Training(num_steps=600, steps_per_dispatch=10, evaluate_every=200, num_samples=8),
    )
