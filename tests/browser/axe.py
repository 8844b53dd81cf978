"""axe-core, the usual checker of accessibility. It is fetched through npm, since it is too large to keep here."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from sparselens.files import write_whole
from sparselens.models.packaged import cache_folder

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
RUN = """async () => {
    const found = await axe.run(document.body, { resultTypes: ['violations'], rules: { region: { enabled: false } } });
    return found.violations.map(({ id, impact, help, nodes }) =>
        ({ id, impact, help, where: nodes.slice(0, 3).map(node => node.html.slice(0, 200)), count: nodes.length }));
}"""


class NoAxe(Exception):
    """axe-core is not here and cannot be fetched; says why."""


def source(folder: Path) -> str:
    """The script's text: kept from before, or fetched into `folder` first.

    Raises:
        NoAxe: npm is missing, does not reach its registry, or gave another file.
    """
    kept = cache_folder() / "tests" / f"axe-core-{VERSION}.min.js"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = _fetch(folder)
        with write_whole(kept) as temporary:
            temporary.write_bytes(text)
    return kept.read_text("utf-8")


def _fetch(folder: Path) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise NoAxe("npm is not on this machine")
    done = subprocess.run([npm, "pack", f"axe-core@{VERSION}", "--silent"], cwd=folder, capture_output=True, text=True,
                          timeout=60)
    packed = folder / f"axe-core-{VERSION}.tgz"
    if done.returncode or not packed.exists():
        raise NoAxe(f"npm could not fetch it: {done.stderr.strip()[-200:]}")
    with tarfile.open(packed) as tar:
        member = tar.extractfile("package/axe.min.js")
        assert member is not None
        text = member.read()
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise NoAxe("the fetched file is another one than expected")
    return text


def violations(page: object, script: str) -> list[dict]:
    """What is wrong on a page, worst kinds only: "serious" and "critical"."""
    page.evaluate(script)  # type: ignore[attr-defined]
    found = page.evaluate(RUN)  # type: ignore[attr-defined]
    return [one for one in found if one["impact"] in ("serious", "critical")]
