"""Makes the pictures of docs/pictures and the page docs/gallery.md anew, by training on embedded sets alone:

    python docs/make_gallery.py --workdir=runs/gallery               # all, under half an hour on two cores
    python docs/make_gallery.py --only=vae_digits,ebm_digits         # some
    python docs/make_gallery.py --only=                              # the page alone

Runs that are in the working directory already are not trained again.  Captions and commands stand in
docs/gallery.json; the number below a caption is the entry's `result` in experiments/results.jsonl.  The script prints
each command with the seconds it took; what the commands print goes to gallery.log in the working directory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageSequence

HERE = Path(__file__).parent
MOST_BYTES = 60_000
LARGEST_SIDE = 480
RESULTS = HERE.parent / "experiments/results.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/gallery", help="directory of the runs")
    parser.add_argument("--only", default=None, help="names of pictures, with commas between; all unless given")
    options = parser.parse_args()
    entries = json.loads((HERE / "gallery.json").read_text(encoding="utf-8"))
    names = [entry["name"] for entry in entries]
    chosen = names if options.only is None else [name for name in options.only.split(",") if name]
    if unknown := set(chosen) - set(names):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    workdir = Path(options.workdir)
    began, done, failed = time.monotonic(), set(), []
    for entry in entries:
        if entry["name"] in chosen and not make(entry, workdir, done):
            failed.append(entry["name"])
    drawn = [entry for entry in entries if picture(entry).exists()]
    (HERE / "gallery.md").write_text(page(drawn), encoding="utf-8")
    print(f"{HERE / 'gallery.md'} has {len(drawn)} entries" + (f"; failed: {', '.join(failed)}" if failed else ""))
    print(f"{len(chosen)} pictures in {(time.monotonic() - began) / 60:.1f} minutes")
    return 1 if failed else 0


def make(entry: dict, workdir: Path, done: set[str]) -> bool:
    """Runs the commands of an entry but those that are `done`, and puts what they drew into docs/pictures; false where
    one of them failed.
    """
    for command in entry["commands"]:
        if command not in done and not run(command.replace("runs/", f"{workdir}/").split(), workdir / "gallery.log"):
            return False
        done.add(command)
    found = sorted(workdir.glob(entry["source"].removeprefix("runs/")))
    if not found:
        print(f"failed: nothing fits {entry['source']}")
        return False
    target = picture(entry)
    target.parent.mkdir(exist_ok=True)
    shrink(found[-1], target)
    print(f"{target.relative_to(HERE.parent)}: {target.stat().st_size / 1000:.0f} kB", flush=True)
    return True


def run(words: list[str], log: Path) -> bool:
    """Runs a command, with its output added to a file, and prints the seconds it took; false where it failed."""
    began = time.monotonic()
    print("$", " ".join(words), flush=True)
    words = [sys.executable if words[0] == "python" else words[0], *words[1:]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        ended = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "MPLBACKEND": "Agg"})
    if ended.returncode:
        print(f"failed; the output is in {log}")
        return False
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return True


def shrink(source: Path, target: Path) -> None:
    """Copies a picture, an animation or a text, made small enough to be committed."""
    if source.suffix not in (".png", ".gif"):
        target.write_text(source.read_text(encoding="utf-8")[:1500], encoding="utf-8")
        return
    with Image.open(source) as picture:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        duration = picture.info.get("duration", 80)
    side, step = LARGEST_SIDE, 1
    while True:
        kept = [fitted(frame, side) for frame in frames[::step]]
        if len(kept) == 1:
            kept[0].quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
        else:
            kept = [frame.quantize(32, dither=Image.Dither.NONE) for frame in kept]
            kept[0].save(target, save_all=True, append_images=kept[1:], duration=duration * step, loop=0, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            return
        side, step = int(side * 0.85), step + (len(frames) > 12)


def fitted(frame: Image.Image, side: int) -> Image.Image:
    """A picture whose longer side is at most `side`; pixels of small pictures stay sharp when they are enlarged."""
    scale = side / max(frame.size)
    if scale >= 2:
        return frame.resize((frame.width * int(scale), frame.height * int(scale)), Image.Resampling.NEAREST)
    if scale >= 1:
        return frame
    return frame.resize((max(int(frame.width * scale), 1), max(int(frame.height * scale), 1)), Image.Resampling.BOX)


def page(entries: list[dict]) -> str:
    """The gallery: a heading a family, and for each picture its caption, number and commands."""
    rows = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    results = {row["name"]: row.get("ours") for row in rows}
    lines = [
        "# Gallery",
        "",
        "Every picture is made by `python docs/make_gallery.py` from embedded data, by the commands below it.",
    ]
    family = None
    for entry in entries:
        if entry["family"] != family:
            family = entry["family"]
            lines += ["", f"## {family}", "", f"Numbers: [results/{family}.md](results/{family}.md)"]
        lines += [
            "",
            f"### {entry['title']}",
            "",
            shown(entry),
            "",
            entry["caption"],
            *([f"Reached: {results[entry['result']]}."] if "result" in entry else []),
            "",
            "```sh",
            *entry["commands"],
            "```",
        ]
    return "\n".join(lines) + "\n"


def shown(entry: dict) -> str:
    """Markdown that shows an entry's picture or text."""
    path = picture(entry)
    if path.suffix in (".png", ".gif"):
        return f"![{entry['title']}](pictures/{path.name})"
    return f"```text\n{path.read_text(encoding='utf-8').strip()}\n```"


def picture(entry: dict) -> Path:
    """Where the picture or text of an entry lies."""
    return HERE / "pictures" / f"{entry['name']}{Path(entry['source']).suffix}"


if __name__ == "__main__":
    sys.exit(main())
