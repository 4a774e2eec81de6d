"""Makes the tables of all documents from the recorded numbers, and checks cheap numbers again.

The numbers stand in experiments/results.jsonl, and plans of runs in experiments/plans.jsonl.

    python -m experiments.results                          # says which documents are out of date
    python -m experiments.results --write                  # brings them up to date
    python -m experiments.results --rerun --only=vae_digits,hmm_jsb --folders=JSB=FILE
    python -m experiments.results --rerun --most_minutes=10 --folders=TFDS=FOLDER,JSB=FILE

--rerun runs the commands of recorded numbers again, each in a directory of its own below --workdir, and names the
numbers that have drifted by more than their tolerance.  Results whose data are not given by
--folders are named and left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments import PLANS, RESULTS, command_line
from genjax.config import ConfigError
from genjax.tools import plan, results

ROOT = Path(__file__).parents[1]
#: Models of each family, as the README lists them.
FAMILIES = {
    "autoencoder": "plain, denoising, sparse, contractive",
    "vae": "VAE, beta-VAE, TCVAE, conditional, IWAE, flow posteriors, VQ-VAE",
    "gan": "GAN, DCGAN, WGAN-GP, SNGAN, StyleGAN2 and 3, pix2pix, CycleGAN, BiGAN, InfoGAN",
    "flow": "NICE, RealNVP, Glow, MAF, IAF, splines, residual, FFJORD",
    "autoregressive": "FVSBN, NADE, MADE, PixelCNN, PixelCNN++, PixelRNN, PixelSNAIL, DALL-E",
    "diffusion": "DDPM, score SDE, EDM, flow matching, VDM, consistency, D3PM, Stable Diffusion, MMDiT",
    "language": "GPT, Llama, BERT, RoBERTa, ELECTRA, T5, BART",
    "alignment": "SFT, reward models, DPO, IPO, KTO, ORPO, SimPO, PPO, GRPO, RLOO, REINFORCE++",
    "retrieval": "BM25, DPR, RAG",
    "recurrent": "RNN, GRU, LSTM, minGRU, LRU, S4D, RNN-NADE, mixture density",
    "markov": "hidden Markov models, Kalman, n-grams",
    "mixture": "Gaussian, Bernoulli, Dirichlet process",
    "monte_carlo": "HMC, NUTS, slice, tempering, Langevin, Gibbs",
    "energy": "RBM, convolutional energy",
    "multimodal": "CLIP, SigLIP, captioners, GIT, LLaVA, Flamingo, Whisper",
    "classifier": "features that samples are judged by",
}
#: Pictures at the top of the README.
PICTURES = (
    "vae_digits",
    "dcgan_digits",
    "edm_points",
    "real_nvp_two_moons",
    "mixture_density_waves",
    "dp_mixture_eight_gaussians",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with the recorded numbers.

    Attributes:
      write: bring the documents up to date.
      rerun: run recorded commands again and compare.
      most_minutes: --rerun takes only results that need at most this time.
      only: names of the results that --rerun takes; by default all.
      folders: places of the data, as in TFDS=FOLDER,JSB=FILE.
      workdir: directory of the runs of --rerun.
    """

    write: bool = False
    rerun: bool = False
    most_minutes: float = 10.0
    only: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    workdir: str = "runs/rerun"


def blocks(found: list[results.Result]) -> dict[str, str]:
    """All tables, by their names in the markers of documents."""
    made = {f"page {name}": results.page(found, name) for name in sorted({r.page for r in found})}
    made["reproduction"] = results.reproduction_table(found)
    made["families"] = results.family_table(found, FAMILIES)
    made["pictures"] = results.captions(found, PICTURES)
    made["plans"] = plan.markdown(plan.recorded(PLANS))
    return made


def print_drift(found: list[results.Result], options: Options) -> int:
    """Runs results again; returns how many have drifted."""
    folders = dict(part.split("=", 1) for part in options.folders if "=" in part)
    if unknown := set(options.only) - {r.name for r in found}:
        raise ConfigError(f"--only names no result: {', '.join(sorted(unknown))}; names stand in {RESULTS}")
    chosen = [
        r
        for r in found
        if r.checks and (r.name in options.only if options.only else (r.minutes or 1e9) <= options.most_minutes)
    ]
    if not chosen:
        raise ConfigError("none of these results has numbers that a command can check again")
    drifted = 0
    for result in chosen:
        if missing := results.needed_folders(result) - set(folders):
            print(f"left out  {result.name}: needs --folders={','.join(f'{name}=...' for name in sorted(missing))}")
            continue
        directory = Path(options.workdir) / result.name
        directory.mkdir(parents=True, exist_ok=True)
        for drift in results.rerun(result, directory, folders, directory / "log.txt"):
            drifted += not drift.holds
            word = "holds" if drift.holds else "DRIFTED"
            now = "no number" if drift.found is None else f"{drift.found:.5g}"
            print(
                f"{word:<9} {result.name}: {drift.check.file.rpartition(':')[2]} recorded {drift.check.value:.5g}, "
                f"now {now} (tolerance {drift.check.tolerance:g}; {drift.seconds:.0f} s)",
                flush=True,
            )
    print(f"{drifted} of {len(chosen)} results have drifted")
    return drifted


def main(arguments: list[str]) -> int:
    options = command_line.options_only(arguments, __doc__, Options())
    if options is None:
        return 0
    found = results.read_results(RESULTS)
    if options.rerun:
        return min(print_drift(found, options), 1)
    if not (ROOT / "README.md").exists():
        raise ConfigError(f"{ROOT} holds no README.md; tables are made in a clone of the repository")
    stale = results.stale_documents(ROOT, blocks(found), options.write)
    for path in stale:
        print(f"{'written' if options.write else 'out of date'}: {path.relative_to(ROOT)}")
    return 0 if options.write else min(len(stale), 1)


if __name__ == "__main__":
    command_line.run(main)
