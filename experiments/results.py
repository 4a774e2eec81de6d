"""Keeps the recorded numbers: makes the tables of all documents from experiments/results.jsonl, and runs the cheap ones again.

    python -m experiments.results                          # says which documents are out of date
    python -m experiments.results --write                  # brings them up to date
    python -m experiments.results --rerun --only=vae_digits,hmm_jsb --folders=JSB=FILE
    python -m experiments.results --rerun --most_minutes=10 --folders=TFDS=FOLDER,JSB=FILE

--rerun runs the commands of recorded numbers again, each in a directory of its own below --workdir, and says which numbers
have drifted by more than their tolerance; results whose data are not given by --folders are named and left out.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.tools import results

FILE = Path(__file__).parent / "results.jsonl"
ROOT = Path(__file__).parents[1]
#: Models of each family, as the README lists them.
FAMILIES = {
    "autoencoder": "plain, denoising, sparse, contractive",
    "vae": "VAE, beta-VAE, TCVAE, conditional, IWAE, flow posteriors, VQ-VAE",
    "gan": "GAN, DCGAN, WGAN-GP, SNGAN, StyleGAN2 and 3, pix2pix, CycleGAN, BiGAN, InfoGAN",
    "flow": "NICE, RealNVP, Glow, MAF, IAF, splines, residual, FFJORD",
    "autoregressive": "FVSBN, NADE, MADE, PixelCNN, PixelCNN++, PixelRNN, PixelSNAIL",
    "diffusion": "DDPM, score SDE, EDM, flow matching, VDM, consistency, masked, D3PM",
    "language": "GPT, Llama, BERT, RoBERTa, ELECTRA, T5, BART",
    "recurrent": "RNN, GRU, LSTM, minGRU, LRU, S4D, RNN-NADE, mixture density",
    "markov": "hidden Markov models, Kalman, n-grams",
    "mixture": "Gaussian, Bernoulli, Dirichlet process",
    "monte_carlo": "HMC, NUTS, slice, tempering, Langevin, Gibbs",
    "energy": "RBM, convolutional energy",
    "classifier": "features that samples are judged by",
}
#: Pictures at the top of the README.
PICTURES = ("vae_digits", "edm_mnist", "dcgan_mnist", "real_nvp_two_moons", "ebm_digits", "nuts_funnel")

flags.DEFINE_boolean("write", False, "bring the documents up to date")
flags.DEFINE_boolean("rerun", False, "run recorded commands again and compare")
flags.DEFINE_float("most_minutes", 10.0, "--rerun takes results that need at most this time")
flags.DEFINE_list("only", [], "--rerun takes these results alone, by name")
flags.DEFINE_list("folders", [], "where data lie, as TFDS=FOLDER,JSB=FILE")
flags.DEFINE_string("workdir", "runs/rerun", "directory of the runs of --rerun")


def blocks(found: list[results.Result]) -> dict[str, str]:
    """All tables by the names that the markers of the documents have."""
    made = {f"page {name}": results.page(found, name) for name in sorted({r.page for r in found})}
    made["reproduction"] = results.reproduction_table(found)
    made["families"] = results.family_table(found, FAMILIES)
    made["pictures"] = results.captions(found, PICTURES)
    return made


def print_drift(found: list[results.Result]) -> int:
    """Runs results again; returns how many have drifted."""
    values = flags.FLAGS
    folders = dict(part.split("=", 1) for part in values.folders if "=" in part)
    if unknown := set(values.only) - {r.name for r in found}:
        raise ConfigError(f"--only names no result: {', '.join(sorted(unknown))}; names stand in {FILE}")
    chosen = [
        r
        for r in found
        if r.checks and (r.name in values.only if values.only else (r.minutes or 1e9) <= values.most_minutes)
    ]
    if not chosen:
        raise ConfigError("none of these results has numbers that a command can check again")
    drifted = 0
    for result in chosen:
        if missing := results.needed_folders(result) - set(folders):
            print(f"left out  {result.name}: needs --folders={','.join(f'{name}=...' for name in sorted(missing))}")
            continue
        directory = Path(values.workdir) / result.name
        directory.mkdir(parents=True, exist_ok=True)
        for drift in results.rerun(result, directory, folders, directory / "log.txt"):
            drifted += not drift.holds
            word = "holds" if drift.holds else "DRIFTED"
            now = "no number" if drift.found is None else f"{drift.found:.5g}"
            print(
                f"{word:<9} {result.name}: {drift.check.file.rpartition(':')[2]} recorded {drift.check.value:.5g}, now {now} "
                f"(tolerance {drift.check.tolerance:g}; {drift.seconds:.0f} s)",
                flush=True,
            )
    print(f"{drifted} of {len(chosen)} results have drifted")
    return drifted


def main(arguments: list[str]) -> int:
    if "help" in command_line.first_flags(arguments, {"help": False}):
        command_line.print_help(__doc__)
        return 0
    flags.FLAGS(arguments)
    found = results.read_results(FILE)
    if flags.FLAGS.rerun:
        return min(print_drift(found), 1)
    stale = results.stale_documents(ROOT, blocks(found), flags.FLAGS.write)
    for path in stale:
        print(f"{'written' if flags.FLAGS.write else 'out of date'}: {path.relative_to(ROOT)}")
    return 0 if flags.FLAGS.write else min(len(stale), 1)


if __name__ == "__main__":
    command_line.run(main)
