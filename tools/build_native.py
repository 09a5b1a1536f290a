"""Compiles the ``.pyx`` files of the tree, each beside itself: what routers do for every request in loops over numbers.

``python tools/build_native.py [FOLDER]`` compiles those that are newer than what was made of them, and says nothing
where there are none. It needs a C compiler and Python's headers (Debian: ``gcc python3-dev``).
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import formulas  # beside this file, which is no package

PACKAGES = ("llmrouter", "router_grpc")
CFLAGS = (
    "-O3",
    "-g0",
    "-ffp-contract=off",  # sums are those of the Python that tests hold them against, on every machine
    "-Wno-unused-function",
    "-Wno-unreachable-code",
)
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": False,
}


def made_of(source: Path) -> Path:
    """The library that is made of a source for this interpreter."""
    return source.with_name(source.stem + sysconfig.get_config_var("EXT_SUFFIX"))


def stale(root: Path) -> list[Path]:
    """The sources whose library is missing, or older than they, what they include, ``.pxd`` files or these tools."""
    sources = sorted(source for package in PACKAGES for source in (root / package).rglob("*.pyx"))
    shared = [
        Path(__file__),
        Path(formulas.__file__),
        *(source for package in PACKAGES for source in (root / package).rglob("*.pxd")),
    ]
    newest = max(path.stat().st_mtime for path in shared)
    return [one for one in sources if not _is_newer(made_of(one), max(newest, _changed_at_s(root, one)))]


def _changed_at_s(root: Path, source: Path) -> float:
    read = [source, *(root / name for name in formulas.included_by(source))]
    return max(one.stat().st_mtime for one in read)


def _is_newer(library: Path, than: float) -> bool:
    return library.is_file() and library.stat().st_mtime > than


def build(root: Path) -> list[Path]:
    """Compiles what is stale, and returns the libraries of all sources.

    Raises:
        SystemExit: there is no C compiler, or no headers.
    """
    sources = stale(root)
    if sources:
        if missing := _missing():
            sys.exit(f"tools/build_native.py: there is no {missing} (Debian: apt-get install gcc python3-dev)")
        print(f"compiling {', '.join(str(one.relative_to(root)) for one in sources)}", file=sys.stderr)
        _compile(root, sources)
    return sorted(made_of(source) for package in PACKAGES for source in (root / package).rglob("*.pyx"))


def _missing() -> str:
    """What of a machine's own is needed and not there."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return "C compiler"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return "" if headers.is_file() else f"{headers}, which Python's headers are"


def _compile(root: Path, sources: list[Path]) -> None:
    from Cython.Build import cythonize  # noqa: PLC0415 - needed only where something is to be compiled
    from setuptools import Distribution, Extension  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory() as scratch:
        _write_formulas(root, sources, Path(scratch, "include"))
        extensions = [
            Extension(
                ".".join(one.relative_to(root).with_suffix("").parts), [str(one)], extra_compile_args=list(CFLAGS)
            )
            for one in sources
        ]
        made = cythonize(
            extensions,
            build_dir=scratch,
            compiler_directives=DIRECTIVES,
            include_path=[f"{scratch}/include", str(root)],
            quiet=True,
            force=True,
        )
        command = Distribution({"name": "llmrouter", "ext_modules": made}).get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.parallel = f"{scratch}/lib", f"{scratch}/objects", True
        command.ensure_finalized()
        command.run()
        for one in sources:
            library = made_of(one)
            built = Path(scratch, "lib", *library.relative_to(root).parts)
            beside = library.with_name(f".{library.name}.{Path(scratch).name}")
            shutil.copy2(built, beside)
            beside.replace(library)  # in one step: who has the old one loaded keeps it
            library.touch()


def _write_formulas(root: Path, sources: list[Path], folder: Path) -> None:
    for name in {name for source in sources for name in formulas.included_by(source)}:
        made = (folder / name).with_suffix(".pxi")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(formulas.written(root, name), encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent).resolve())
