"""The options of the command line: what `undense --help` shows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from . import __version__
from .passes.budget import BATCHES, PLAN_SECONDS

Run = Callable[[argparse.Namespace], int]
"""Carries out a verb; returns the exit code."""

_DESCRIPTION = "Replaces the dense layers of an exported model by structured ones and compiles it."
_SCHEMES = "int_codes{bits=4}, trit_planes{planes=2}, low_rank{ratio=0.5}, monarch{ratio=0.5}"


def parser(verbs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """Of a command line whose options `run` to one of `verbs`, by its name."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    common.add_argument("--quiet", action="store_true", help="no progress bars and no tables")
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--json", action="store_true", help="print JSON instead of a table")

    found = argparse.ArgumentParser(prog="undense", description=_DESCRIPTION)
    found.add_argument("--version", action="version", version=f"undense {__version__}")
    parsers = found.add_subparsers(required=True, metavar="VERB", title="verbs")

    def verb(name: str, text: str, *, prints_table: bool = True) -> argparse.ArgumentParser:
        parents = [common, table] if prints_table else [common]
        added = parsers.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(run=verbs[name])
        return added

    compiling = verb("compile", "compile a model into an artifact folder")
    compiling.add_argument("model", metavar="MODEL", help=".onnx or .pt2 file")
    compiling.add_argument("-o", "--output", metavar="OUT", required=True, help="artifact folder")
    _add_decisions(compiling)
    compiling.add_argument("--plan", metavar="FILE", help="carry out this plan.json instead")
    compiling.add_argument(
        "--validation", metavar="FILE.py:FUNCTION",
        help="function of a model, called like a loaded artifact, and of the samples of "
        "--validation-data, that returns a metric, higher for better; layers stay dense until "
        "max_drop of --budget holds for it",
    )  # fmt: skip
    compiling.add_argument(
        "--validation-data", metavar="FILE.npz",
        help="what that function is given: a list of samples, each a dict of arrays, in the forms "
        "of --calib; they may hold labels too",
    )  # fmt: skip
    compiling.add_argument(
        "--drop-type", metavar="absolute|relative", default="absolute",
        help="of the metric: in its unit (default), or as a share of the dense model's",
    )  # fmt: skip
    compiling.add_argument(
        "--portable",
        action="store_true",
        help="for ort-cpu: write model.onnx with standard operators only",
    )
    compiling.add_argument(
        "--no-onnx", action="store_true", help="for a TVM target: leave model.onnx out"
    )
    compiling.add_argument(
        "--no-tuned", action="store_true", help="use no tiling that was measured before"
    )
    compiling.add_argument(
        "--use-cuda-graph", metavar="DIM,...", nargs="?", const=True, default=False,
        type=lambda text: tuple(text.split(",")),
        help="for cuda: launch as CUDA graphs what depends on these dynamic dimensions alone "
        "(batch=8,tokens=1), or on any with an upper bound",
    )  # fmt: skip

    planning = verb("plan", "plan what compile would do, and predict size, latency and drop")
    planning.add_argument("model", metavar="MODEL", help=".onnx or .pt2 file")
    planning.add_argument(
        "-o", "--output", metavar="PLAN.json", default="plan.json",
        help="where the plan is written (default plan.json), for compile --plan",
    )  # fmt: skip
    _add_decisions(planning)
    planning.add_argument(
        "--point", type=int, metavar="N",
        help="take this point of the Pareto table, from 1, instead of what the budget chooses",
    )  # fmt: skip

    inspecting = verb("inspect", "list the linears of a model or artifact, and why")
    inspecting.add_argument("source", metavar="OUT|MODEL")
    inspecting.add_argument("--graph", action="store_true", help="print the graph as text")
    inspecting.add_argument("--diff", metavar="OTHER", help="compare the graphs of two models")

    running = verb("run", "run an artifact once", prints_table=False)
    running.add_argument("artifact", metavar="OUT")
    running.add_argument("--input", metavar="IN.npz", required=True, help="one array an input")
    running.add_argument("--output", metavar="OUT.npz", required=True)
    running.add_argument("--threads", type=int, metavar="N")
    _add_machine(running)

    verifying = verb("verify", "rerun the stored samples; exit 1 if it does not hold")
    verifying.add_argument("artifact", metavar="OUT")
    verifying.add_argument("--against", metavar="MODEL", help="take fresh outputs of this model")
    verifying.add_argument("--input", metavar="IN.npz", help="with --against: take fresh inputs")
    _add_machine(verifying)

    timing = verb("bench", "time an artifact, interleaved with the dense model")
    timing.add_argument("artifact", metavar="OUT")
    timing.add_argument("--against", metavar="MODEL", help="the dense model, run by ONNX Runtime")
    timing.add_argument("--input", metavar="IN.npz", help="default: the first stored sample")
    timing.add_argument("--threads", type=int, metavar="N")
    timing.add_argument(
        "--profile", action="store_true", help="a table of the time in each function instead"
    )
    timing.add_argument("--repeats", type=int, default=20)
    _add_machine(timing)

    tuning = verb("tune", "measure tilings of an artifact's kernels and build it with them")
    tuning.add_argument("artifact", metavar="OUT", help="made for target llvm or cuda")
    tuning.add_argument(
        "--trials", type=int, default=32, metavar="N",
        help="candidates of each kernel and number of rows, and of each function without a "
        "schedule, at most (default 32, about a second each); 0 measures nothing and builds with "
        "what was measured before",
    )  # fmt: skip
    tuning.add_argument(
        "--rows", metavar="N,...",
        help="numbers of rows to tune for (default: 1,8,32,128, and for cuda 8,16,64,2048)",
    )  # fmt: skip
    tuning.add_argument(
        "--threads", type=int, metavar="N", help="to measure with (default: one for each core)"
    )
    tuning.add_argument(
        "--tracker", metavar="HOST:PORT",
        help="measure on the servers that TVM's RPC tracker has for the target's CPU, or for the "
        "last architecture of its GPUs",
    )  # fmt: skip
    tuning.add_argument(
        "--export", metavar="FOLDER",
        help="for cuda: measure nothing, and write a folder with compiled candidates and a script "
        "that measures them on a machine with a GPU and torch",
    )  # fmt: skip
    tuning.add_argument(
        "--merge", metavar="RESULTS.json",
        help="for cuda: build with what that script measured, which lies in its folder",
    )  # fmt: skip

    caching = verb("cache", "what is kept of earlier runs, how large it is, and where")
    _add_cache_folder(caching)
    caching.add_argument(
        "--clear", metavar="KIND", nargs="?", const=True,
        help="remove all entries, or those of one kind",
    )  # fmt: skip

    checking = verb("doctor", "what is installed and usable, and the traps of a model")
    checking.add_argument("model", metavar="MODEL.onnx", nargs="?")
    return found


def _add_decisions(parser: argparse.ArgumentParser) -> None:
    """What decides the scheme of every site."""
    parser.add_argument(
        "--target",
        default="llvm",
        help="llvm (default), cuda, ort-cpu or ort-cuda; 'cuda -libs=cublas' leaves dense layers "
        "of many rows to cuBLAS and stores their weights twice",
    )
    parser.add_argument(
        "--dtype", metavar="float16|bfloat16", help="convert a float32 model to this type first"
    )
    parser.add_argument(
        "--kernels", metavar="tvm", help="for ort-cpu: kernels compiled by TVM for this CPU"
    )
    parser.add_argument(
        "--scheme", default="auto",
        help="scheme of all sites: auto (default), which measures what pays, or e.g. " + _SCHEMES,
    )  # fmt: skip
    parser.add_argument(
        "--rules", metavar="FILE.yaml",
        help="schemes by site, [{match: PATTERN, scheme: SCHEME}, ...]: first match wins, "
        "sites without one stay dense",
    )  # fmt: skip
    parser.add_argument(
        "--ignore", metavar="PATTERN", action="append", default=[],
        help="keep these sites dense: a glob, or re: and a regular expression; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--calib", metavar="FILE.npz",
        help="calibration samples: arrays by input name, or 0/NAME, 1/NAME, ... for several; plan "
        "needs them",
    )  # fmt: skip
    parser.add_argument(
        "--budget", metavar="K=V,...",
        help="for auto, limits that hold together: size_ratio, latency_ratio, effective_bits, "
        "max_drop (default max_drop=0.01, of the distortion of the outputs, or of --validation)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", metavar="N,...", default=",".join(map(str, BATCHES)),
        help="for auto, rows at which kernels are timed: tokens, or samples, of one call "
        "(default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--plan-time", type=float, metavar="SECONDS", default=PLAN_SECONDS,
        help="for auto, what measuring distortions may take (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--lossless", metavar="NAME,...", default=True, type=lambda text: text.split(","),
        help="exact rewrites to make, instead of those that pay by themselves",
    )  # fmt: skip
    parser.add_argument(
        "--no-lossless", dest="lossless", action="store_false", help="make no exact rewrites"
    )
    _add_cache_folder(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="compute everything, and keep nothing of it"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="fit on the workers of a dask scheduler"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="cpu|cuda", help="default: the one that the artifact was made for"
    )
    parser.add_argument(
        "--engine", metavar="tvm|ort", help="default: the one that the artifact was made for"
    )


def _add_cache_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", metavar="FOLDER",
        help="where statistics, fits and measurements are kept for later runs (default: "
        "$UNDENSE_CACHE, else the user's cache; up to $UNDENSE_CACHE_LIMIT, default 10GiB)",
    )  # fmt: skip
