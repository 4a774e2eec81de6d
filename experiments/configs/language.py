"""Transformer language models on text, characters and molecules."""

from genjax.config import register
from genjax.data import LabelledText, Molecules, NoteEvents, Text
from genjax.families.language.gpt import GPT
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.families.language.networks import gpt2_network, llama_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Cosine, Linear
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.network.num_layers": 1,
    "model.network.width": 8,
    "model.network.num_heads": 2,
    "data.name": "python_topics",
    "data.sequence_length": 16,
    "data.batch_size": 16,
    "data.stride": None,
    "evaluation.split": "test",
    "evaluation.validation_split": "validation",
    "evaluation.num_examples": 100,
}
_SHRUNK_MOLECULES = {
    "model.network.num_layers": 1,
    "model.network.width": 8,
    "model.network.num_heads": 2,
    "data.name": "combinations",
    "data.batch_size": 16,
}


def _adam(learning_rate: float, warmup_steps: int, final_scale: float = 0.1, weight_decay: float = 0.1) -> AdamW:
    return AdamW(
        learning_rate=learning_rate,
        b2=0.99,
        weight_decay=weight_decay,
        clip_norm=1.0,
        schedule=Cosine(warmup_steps=warmup_steps, final_scale=final_scale),
    )


@register(
    "gpt_text",
    source="GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023) blocks, on the help texts that Python carries",
    shrunk=_SHRUNK,
)
def gpt_text() -> Experiment:
    """A Llama-like model of characters on embedded text, which needs no file.

    python -m experiments.train --experiment=gpt_text --workdir=runs/gpt_text

    About four minutes on two CPU cores.
    """
    return Experiment(
        model=GPT(network=llama_network(4, 128, 4, max_length=256), optimizer=_adam(2e-3, 50)),
        data=Text(name="python_topics", sequence_length=64, batch_size=32, stride=1),
        training=Training(num_steps=2000, evaluate_every=500, best_metric="nll_per_token", num_samples=8),
    )


def _shakespeare(model: GPT, sequence_length: int, batch_size: int, num_steps: int) -> Experiment:
    return Experiment(
        model=model,
        data=Text(name="tiny_shakespeare", sequence_length=sequence_length, batch_size=batch_size, stride=1),
        training=Training(
            num_steps=num_steps,
            steps_per_dispatch=10,
            evaluate_every=250,
            checkpoint_every=250,
            best_metric="nll_per_token",
            num_samples=4,
        ),
        # TFDS divides 90/5/5; the two small parts together are the last tenth, nanoGPT's validation text.
        evaluation=Evaluation(split="validation+test", validation_split="validation+test"),
    )


@register(
    "gpt_shakespeare",
    source="nanoGPT's train_shakespeare_char (github.com/karpathy/nanoGPT): 6 layers, 6 heads, 384 wide, context 256",
    shrunk=_SHRUNK,
)
def gpt_shakespeare() -> Experiment:
    """The 10.6M-parameter character model.

    python -m experiments.train --experiment=gpt_shakespeare --data.dir=TFDS_DIRECTORY --workdir=runs/gpt_shakespeare

    Minutes on one GPU, with --model.compute_dtype=bfloat16; many hours on two CPU cores.
    """
    network = Transformer(
        num_layers=6,
        width=384,
        num_heads=6,
        max_length=256,
        use_bias=False,
        dropout=0.2,
        attention_dropout=0.2,
    )
    return _shakespeare(GPT(network=network, optimizer=_adam(1e-3, 100)), 256, 64, 5000)


@register(
    "gpt_shakespeare_small",
    source="nanoGPT's CPU setting has 4 layers, 128 wide, context 64, batch 12, 2000 steps, and reaches 1.88",
    shrunk=_SHRUNK,
)
def gpt_shakespeare_small() -> Experiment:
    """A small Llama-like character model for two CPU cores.

    python -m experiments.train --experiment=gpt_shakespeare_small --data.dir=TFDS_DIRECTORY --workdir=runs/gpt_small

    About ten minutes of CPU, five of two cores.
    """
    network = llama_network(4, 128, 4, max_length=256, dropout=0.0)
    return _shakespeare(GPT(network=network, optimizer=_adam(3e-3, 100)), 128, 32, 2000)


@register(
    "gpt_molecules",
    source="a GPT beside the CharRNN of MOSES (Polykovskiy et al. 2020, arXiv:1811.12823)",
    shrunk=_SHRUNK_MOLECULES,
)
def gpt_molecules() -> Experiment:
    """A GPT of SMILES characters on MOSES (files at --data.dir); --data.name=combinations needs no file.

    python -m experiments.train --experiment=gpt_molecules --data.dir=MOSES_DIRECTORY --workdir=runs/gpt_molecules

    About ten minutes on one GPU.
    """
    return Experiment(
        model=GPT(network=llama_network(6, 256, 8, max_length=128), optimizer=_adam(1e-3, 500, weight_decay=0.01)),
        data=Molecules(name="moses", batch_size=512),
        training=Training(num_steps=12000, steps_per_dispatch=10, evaluate_every=4000, best_metric="nll"),
    )


@register(
    "gpt2_124m",
    source="GPT-2 small (Radford et al. 2019), trained as by nanoGPT on OpenWebText",
    shrunk={**_SHRUNK, "data.tokenizer": "bytes", "model.compute_dtype": "float32",
            "model.optimizer.accumulation_steps": 1, "model.network.remat": False, "model.network.scan_layers": False},
)  # fmt: skip
def gpt2_124m() -> Experiment:
    """GPT-2 124M in bfloat16 on text files of the user, sharded over eight devices.

    python -m experiments.train --experiment=gpt2_124m --data.dir=FOLDER --workdir=runs/gpt2 \\
        --training.mesh=data:4,fsdp:2

    Days on eight accelerators.  A run that starts anywhere: --model.network.num_layers=2 --model.network.width=64
    --model.network.num_heads=2 --data.name=python_topics --data.batch_size=8 --training.mesh=none
    """
    network = gpt2_network(scan_layers=True, remat=True)
    return Experiment(
        model=GPT(
            network=network,
            compute_dtype="bfloat16",
            optimizer=AdamW(
                learning_rate=6e-4,
                b2=0.95,
                weight_decay=0.1,
                clip_norm=1.0,
                schedule=Cosine(warmup_steps=2000, final_scale=0.1),
            ),
        ),
        data=Text(name="file", tokenizer="bpe", vocab_size=50256, sequence_length=1024, batch_size=480),
        training=Training(num_steps=600_000, evaluate_every=1000, num_samples=8),
    )


@register(
    "llama_7b",
    source="LLaMA 7B (Touvron et al. 2023, arXiv:2302.13971)",
    shrunk={**_SHRUNK, "data.tokenizer": "bytes", "model.compute_dtype": "float32", "model.network.mlp_dim": 16,
            "model.optimizer.accumulation_steps": 1, "model.network.remat": False, "model.network.scan_layers": False},
)  # fmt: skip
def llama_7b() -> Experiment:
    """LLaMA 7B in bfloat16 on text files of the user, with parameters and optimizer sharded over 64 devices.

    python -m experiments.train --experiment=llama_7b --data.dir=FOLDER --workdir=runs/llama \\
        --training.mesh=data:4,fsdp:16

    Weeks on 64 accelerators.  A run that starts anywhere: --model.network.num_layers=2 --model.network.width=64
    --model.network.num_heads=2 --model.network.mlp_dim=128 --data.name=python_topics --data.tokenizer=bytes
    --data.sequence_length=64 --data.batch_size=8 --training.mesh=none
    """
    network = llama_network(
        32, 4096, 32, mlp_dim=11008, max_length=2048, norm_epsilon=1e-6, scan_layers=True, remat=True
    )
    optimizer = AdamW(
        learning_rate=3e-4,
        b2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
        schedule=Cosine(warmup_steps=2000, final_scale=0.1),
    )
    return Experiment(
        model=GPT(network=network, tie_embeddings=False, compute_dtype="bfloat16", optimizer=optimizer),
        data=Text(name="file", tokenizer="bpe", vocab_size=31_999, sequence_length=2048, batch_size=2048),
        training=Training(num_steps=250_000, evaluate_every=1000, num_samples=8),
    )


@register(
    "llama_70b",
    source="Llama 2 70B (Touvron et al. 2023, arXiv:2307.09288)",
    shrunk={**_SHRUNK, "data.tokenizer": "bytes", "model.compute_dtype": "float32", "model.network.mlp_dim": 16,
            "model.network.num_kv_heads": None, "model.network.remat": False, "model.network.scan_layers": False},
)  # fmt: skip
def llama_70b() -> Experiment:
    """Llama 2 70B in bfloat16 on text files of the user, batches of four million tokens, sharded over 512 devices.

    python -m experiments.train --experiment=llama_70b --data.dir=FOLDER --workdir=runs/llama --training.mesh=fsdp:512

    Weeks on 512 accelerators.  A run that starts anywhere: --model.network.num_layers=2 --model.network.width=64
    --model.network.num_heads=2 --model.network.num_kv_heads=1 --model.network.mlp_dim=128 --data.name=python_topics
    --data.tokenizer=bytes --data.sequence_length=64 --data.batch_size=8 --training.mesh=none
    """
    network = llama_network(80, 8192, 64, 8, mlp_dim=28672, scan_layers=True, remat=True)
    optimizer = AdamW(
        learning_rate=1.5e-4,
        b2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
        schedule=Cosine(warmup_steps=2000, final_scale=0.1),
    )
    return Experiment(
        model=GPT(network=network, tie_embeddings=False, compute_dtype="bfloat16", optimizer=optimizer),
        data=Text(name="file", tokenizer="bpe", vocab_size=31_999, sequence_length=4096, batch_size=1024),
        training=Training(num_steps=480_000, evaluate_every=1000, num_samples=8),
    )


@register(
    "gpt_chorales",
    source="RNN-NADE (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392) has 5.56 nats a frame; "
    "here a GPT of note events",
    shrunk={"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2,
            "model.network.max_length": 128, "data.name": "chords", "data.crop": 16, "data.batch_size": 16,
            "evaluation.num_examples": 16},
)  # fmt: skip
def gpt_chorales() -> Experiment:
    """A GPT of the notes of the JSB chorales (jsb_chorales.npz at --data.dir), from low to high, frame by frame.

    python -m experiments.train --experiment=gpt_chorales --data.dir=FOLDER --workdir=runs/gpt_chorales

    About a quarter of an hour of CPU.  Samples are written as pictures, MIDI and WAV files.
    """
    network = llama_network(4, 128, 4, max_length=1024, dropout=0.2, mlp_dropout=0.2)
    return Experiment(
        model=GPT(network=network, optimizer=_adam(2e-3, 50, final_scale=0.05)),
        data=NoteEvents(name="jsb_chorales", batch_size=16, transpose=6, crop=256, eval_batch_size=20),
        training=Training(
            num_steps=2500,
            steps_per_dispatch=10,
            evaluate_every=250,
            checkpoint_every=250,
            best_metric="nll_per_frame",
            num_samples=8,
        ),
    )


@register(
    "gpt_sentiment",
    source="GPT with a head on its last token (Radford et al. 2018, section 3.2)",
    shrunk={"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2,
            "data.batch_size": 16, "evaluation.num_examples": 50},
)  # fmt: skip
def gpt_sentiment() -> Experiment:
    """A GPT that classifies made reviews, which need no file; --data.name=table reads the user's.

    python -m experiments.train --experiment=gpt_sentiment --workdir=runs/gpt_sentiment

    Under a minute on one CPU core.  From a GPT that was trained on text, with the same tokenizer and network:
    --training.init_from=RUN --training.init_prefix=embedding,stack, with --model.lora=lora for low-rank updates alone.
    """
    optimizer = AdamW(learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0, schedule=Linear(warmup_steps=50))
    return Experiment(
        model=GPTForTask(network=llama_network(2, 64, 4, max_length=128), optimizer=optimizer),
        data=LabelledText(batch_size=32),
        training=Training(num_steps=1000, steps_per_dispatch=10, evaluate_every=250, num_samples=8),
    )
