"""Encoder-decoders: translation, text-to-text tasks, and pre-training by restoring text."""

from genjax.config import register
from genjax.data import EncoderText, TextToText
from genjax.families.language.bart import BART
from genjax.families.language.corruption import Denoising, Pairs
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.networks import bart_network, t5_network, translation_network
from genjax.families.language.t5 import T5
from genjax.optimizers import Adam, AdamW, Cosine, InverseSquareRoot, Linear
from genjax.training import Experiment, Training


def _tiny(width: int = 8) -> dict[str, object]:
    sizes = {"num_layers": 1, "width": width, "num_heads": 2}
    return {f"model.{side}.{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}


_SHRUNK_MIXTURE = {**_tiny(), "data.name": "mixture", "data.tokenizer": "characters", "data.num_made": 120,
                   "data.batch_size": 16, "data.source_length": 64, "data.target_length": 32}  # fmt: skip
_SHRUNK_TEXT = {**_tiny(), "data.name": "python_topics", "data.tokenizer": "bytes", "data.sequence_length": 24,
                "data.batch_size": 16}  # fmt: skip
_LARGE = {"model.compute_dtype": "float32", "model.encoder.scan_layers": False, "model.decoder.scan_layers": False}


@register(
    "t5_mixture",
    source="text-to-text tasks after Raffel et al. 2020, arXiv:1910.10683, on a made mixture of six",
    shrunk={**_SHRUNK_MIXTURE, "model.encoder.head_dim": 4, "model.decoder.head_dim": 4},
)
def t5_mixture() -> Experiment:
    """A small T5 that adds, reverses, rewrites dates, fills slots, reads tables and sums up, told by a prefix.

    python -m experiments.train --experiment=t5_mixture --workdir=runs/t5
    python -m experiments.train --experiment=t5_mixture --training.init_from=runs/t5 --training.num_steps=5000 \\
        --data.tasks=table,sum,table,reverse,table,date,table,slots,table,summary --workdir=runs/t5_tables

    Half of the second run's examples are tables, the last task to be learned.  26 and 13 minutes of one CPU core.
    --model.objective=span_corruption with --data=encoder_text pre-trains the same network; both runs then need
    --model.extra_tokens=20, as sentinels.
    """
    # Cross attention finds its place by sinusoidal positions: with T5's biases by distance it copies far later (17.5 %
    # of answers right after 3000 steps, beside 57.8 %).
    network = t5_network(
        2, 128, 4, head_dim=32, mlp_dim=256, positions="sinusoidal", max_length=128,
        dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0,
    )  # fmt: skip
    optimizer = AdamW(learning_rate=1e-3, b2=0.98, weight_decay=0.0, clip_norm=1.0, schedule=Cosine(warmup_steps=200))
    return Experiment(
        # Small embeddings made larger where they enter, and logits that are not divided, learn far sooner than the
        # other way round: after 300 steps 0.62 nats a token instead of 1.33.
        model=T5(
            encoder=network, decoder=network, extra_tokens=0, objective=Pairs(), embedding_scale=None,
            scale_logits=False, optimizer=optimizer,
        ),
        data=TextToText(name="mixture", num_made=200_000, batch_size=64, eval_batch_size=300),
        training=Training(
            num_steps=10_000, steps_per_dispatch=10, evaluate_every=1000, best_metric="exact_match", best_mode="max",
            num_samples=8,
        ),
    )  # fmt: skip


@register(
    "t5_embedded",
    source="span corruption of Raffel et al. 2020, arXiv:1910.10683, on the help texts that Python carries",
    shrunk={**_SHRUNK_TEXT, "model.encoder.head_dim": 4, "model.decoder.head_dim": 4},
)
def t5_embedded() -> Experiment:
    """A small T5 of bytes that restores spans; a checkpoint goes on with pairs by --training.init_from.

    python -m experiments.train --experiment=t5_embedded --workdir=runs/t5_spans

    About 15 minutes on two CPU cores.
    """
    network = t5_network(2, 128, 4, head_dim=32, mlp_dim=512, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    optimizer = AdamW(learning_rate=2e-3, b2=0.98, weight_decay=0.0, clip_norm=1.0, schedule=Cosine(warmup_steps=200))
    return Experiment(
        model=T5(encoder=network, decoder=network, optimizer=optimizer),
        data=EncoderText(tokenizer="bytes", sequence_length=128, batch_size=32),
        training=Training(num_steps=3000, evaluate_every=500, best_metric="nll_per_token", num_samples=4),
    )


@register(
    "bart_embedded",
    source="Lewis et al. 2020, arXiv:1910.13461, on the help texts that Python carries",
    shrunk=_SHRUNK_TEXT,
)
def bart_embedded() -> Experiment:
    """A small BART of bytes that restores infilled text with sentences in another order.

    python -m experiments.train --experiment=bart_embedded --workdir=runs/bart

    About 15 minutes on two CPU cores.
    """
    network = bart_network(2, 128, 4, max_length=256, dropout=0.0)
    return Experiment(
        model=BART(
            encoder=network,
            decoder=network,
            objective=Denoising(sentence_end_tokens=(ord("."),)),
            optimizer=AdamW(
                learning_rate=1e-3, b2=0.98, weight_decay=0.01, clip_norm=1.0, schedule=Linear(warmup_steps=200)
            ),
        ),
        data=EncoderText(tokenizer="bytes", sequence_length=128, batch_size=32),
        training=Training(num_steps=3000, evaluate_every=500, best_metric="nll_per_token", num_samples=4),
    )


@register(
    "transformer_multi30k",
    source="Vaswani et al. 2017, arXiv:1706.03762, in the size of a common Multi30k exercise (3 + 3 layers, 256 wide)",
    shrunk=_SHRUNK_MIXTURE,
)
def transformer_multi30k() -> Experiment:
    """German to English on Multi30k: files train.de, train.en, val.*, test_2016_flickr.* at --data.dir, lower-cased.

    python -m experiments.train --experiment=transformer_multi30k --data.dir=MULTI30K --workdir=runs/multi30k
    python -m experiments.text --workdir=runs/multi30k

    Minutes on a GPU, about 80 minutes of one CPU core.
    """
    network = translation_network(3, 256, 8, mlp_dim=512, max_length=128)
    return Experiment(
        model=EncoderDecoder(
            encoder=network,
            decoder=network,
            optimizer=Adam(
                learning_rate=2e-3, b2=0.98, eps=1e-9, clip_norm=1.0, schedule=InverseSquareRoot(warmup_steps=800)
            ),
        ),
        data=TextToText(
            name="files", tokenizer="bpe", vocab_size=4000, lowercase=True, source_length=40, target_length=40,
            batch_size=128,
        ),
        training=Training(num_steps=2270, evaluate_every=227, best_metric="nll_per_token", num_samples=8),
    )  # fmt: skip


def _published(model: T5 | BART, vocab_size: int, sequence_length: int) -> Experiment:
    return Experiment(
        model=model,
        data=EncoderText(
            name="file", tokenizer="unigram" if isinstance(model, T5) else "bpe", vocab_size=vocab_size,
            sequence_length=sequence_length, batch_size=128,
        ),
        training=Training(num_steps=500_000, evaluate_every=10_000, num_samples=4),
    )  # fmt: skip


@register(
    "t5_small",
    source="T5-small, 60M parameters (Raffel et al. 2020); T5-base by --model.*.num_layers=12, width 768, 12 heads, "
    "mlp_dim 3072",
    shrunk={**_SHRUNK_TEXT, **_LARGE, "model.encoder.head_dim": 4, "model.decoder.head_dim": 4},
)
def t5_small() -> Experiment:
    """T5-small in bfloat16 by span corruption on text files of the user, sharded over eight devices.

    python -m experiments.train --experiment=t5_small --data.dir=FOLDER --workdir=runs/t5_small \\
        --training.mesh=data:4,fsdp:2

    Days on eight accelerators.  A run that starts anywhere: --model.encoder.num_layers=1 --model.decoder.num_layers=1
    --data.name=python_topics --data.tokenizer=bytes --data.sequence_length=32 --data.batch_size=8 --training.mesh=none
    """
    network = t5_network(scan_layers=True)
    return _published(T5(encoder=network, decoder=network, compute_dtype="bfloat16"), 32_000, 512)


@register(
    "bart_base",
    source="BART-base, 140M parameters (Lewis et al. 2020)",
    shrunk={**_SHRUNK_TEXT, **_LARGE},
)
def bart_base() -> Experiment:
    """BART-base in bfloat16 on text files of the user, sharded over eight devices.

    python -m experiments.train --experiment=bart_base --data.dir=FOLDER --workdir=runs/bart_base \\
        --training.mesh=data:4,fsdp:2

    Days on eight accelerators.  A run that starts anywhere: --model.encoder.num_layers=1 --model.decoder.num_layers=1
    --data.name=python_topics --data.tokenizer=bytes --data.sequence_length=32 --data.batch_size=8 --training.mesh=none
    """
    network = bart_network(scan_layers=True)
    return _published(BART(encoder=network, decoder=network, compute_dtype="bfloat16"), 50_000, 512)
