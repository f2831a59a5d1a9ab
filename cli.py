"""`undense`: compile, inspect, run, verify, bench, tune, cache and doctor on the command line."""

from __future__ import annotations

import argparse
import difflib
import json
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .cache_command import (
    add_cache_arguments,
    add_cache_options,
    cache_arguments,
    cache_contents,
)
from .dense_model import dense_model
from .passes.errors import InputError, UndenseError, cause_of

if TYPE_CHECKING:
    from .runtime.session import Session

EXIT_OK, EXIT_DOES_NOT_HOLD, EXIT_BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 1 (it does not hold) or 2 (bad input, said in one sentence)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.showwarning = _show_warning
    try:
        return int(options.run(options))
    except UndenseError as error:
        return _fail(options, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(options, f"{where}{cause_of(error)}")
    except KeyboardInterrupt:
        return _fail(options, "interrupted; no artifact was written")
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(options, f"internal error, please report it with --traceback: {cause}")


def _fail(options: argparse.Namespace, sentence: str) -> int:
    if options.traceback:
        raise
    print(f"undense: {sentence}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"undense: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    common.add_argument("--quiet", action="store_true", help="no progress bars and no tables")
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--json", action="store_true", help="print JSON instead of a table")

    parser = argparse.ArgumentParser(prog="undense", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"undense {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")

    def verb(name: str, run: Any, text: str, *, prints_table: bool = True) -> Any:
        parents = [common, table] if prints_table else [common]
        added = verbs.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(run=run)
        return added

    compiling = verb("compile", _compile, "compile a model into an artifact folder")
    compiling.add_argument("model", metavar="MODEL", help=".onnx or .pt2 file")
    compiling.add_argument("-o", "--output", metavar="OUT", required=True, help="artifact folder")
    compiling.add_argument(
        "--target",
        default="llvm",
        help="llvm (default), cuda, ort-cpu or ort-cuda; 'cuda -libs=cublas' leaves dense layers "
        "of many rows to cuBLAS and stores their weights twice",
    )
    compiling.add_argument(
        "--dtype", metavar="float16|bfloat16", help="convert a float32 model to this type first"
    )
    compiling.add_argument("--scheme", default="auto", help="scheme of all sites, e.g. " + _SCHEMES)
    compiling.add_argument("--rules", metavar="FILE.yaml", help="schemes by site, first match wins")
    compiling.add_argument(
        "--ignore", metavar="PATTERN", action="append", default=[],
        help="keep these sites dense: a glob, or re: and a regular expression; may be repeated",
    )  # fmt: skip
    compiling.add_argument("--calib", metavar="FILE.npz", help="calibration samples")
    compiling.add_argument("--budget", metavar="K=V,...", help="not there yet: see --scheme")
    compiling.add_argument("--plan", metavar="FILE", help="carry out this plan.json instead")
    compiling.add_argument("--seed", type=int, default=0)
    compiling.add_argument(
        "--portable", action="store_true", help="write model.onnx with standard operators only"
    )
    compiling.add_argument(
        "--kernels", metavar="tvm", help="for ort-cpu: kernels compiled by TVM for this CPU"
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

    add_cache_options(compiling)

    inspecting = verb("inspect", _inspect, "list the linears of a model or artifact, and why")
    inspecting.add_argument("source", metavar="OUT|MODEL")
    inspecting.add_argument("--graph", action="store_true", help="print the graph as text")
    inspecting.add_argument("--diff", metavar="OTHER", help="compare the graphs of two models")

    running = verb("run", _run, "run an artifact once", prints_table=False)
    running.add_argument("artifact", metavar="OUT")
    running.add_argument("--input", metavar="IN.npz", required=True, help="one array an input")
    running.add_argument("--output", metavar="OUT.npz", required=True)
    running.add_argument("--threads", type=int, metavar="N")
    _add_device(running)

    verifying = verb("verify", _verify, "rerun the stored samples; exit 1 if it does not hold")
    verifying.add_argument("artifact", metavar="OUT")
    verifying.add_argument("--against", metavar="MODEL", help="take fresh outputs of this model")
    verifying.add_argument("--input", metavar="IN.npz", help="with --against: take fresh inputs")
    _add_device(verifying)

    timing = verb("bench", _bench, "time an artifact, interleaved with the dense model")
    timing.add_argument("artifact", metavar="OUT")
    timing.add_argument("--against", metavar="MODEL", help="the dense model, run by ONNX Runtime")
    timing.add_argument("--input", metavar="IN.npz", help="default: the first stored sample")
    timing.add_argument("--threads", type=int, metavar="N")
    timing.add_argument(
        "--profile", action="store_true", help="a table of the time in each function instead"
    )
    timing.add_argument("--repeats", type=int, default=20)
    _add_device(timing)

    tuning = verb("tune", _tune, "measure tilings of an artifact's kernels and build it with them")
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
    tuning.add_argument("--threads", type=int, metavar="N")
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

    caching = verb("cache", _cache, "what is kept of earlier runs, how large it is, and where")
    add_cache_arguments(caching)

    checking = verb("doctor", _doctor, "what is installed and usable, and the traps of a model")
    checking.add_argument("model", metavar="MODEL.onnx", nargs="?")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="cpu|cuda", help="default: the one that the artifact was made for"
    )


_DESCRIPTION = "Replaces the dense layers of an exported model by structured ones and compiles it."
_SCHEMES = "int_codes{bits=4}, trit_planes{planes=2}, low_rank{ratio=0.5}, monarch{ratio=0.5}"


def _compile(options: argparse.Namespace) -> int:
    from .compiler import compile
    from .passes.rules import read_rules
    from .runtime.progress import progress_bar
    from .runtime.report import print_report
    from .runtime.unloaded import Unloaded

    if options.rules and options.scheme != "auto":
        raise InputError("give --scheme or --rules; a rule that matches '*' serves the rest")
    with progress_bar(quiet=options.quiet) as progress:
        session = compile(
            options.model,
            target=options.target,
            dtype=options.dtype,
            scheme=read_rules(options.rules) if options.rules else options.scheme,
            budget=options.budget,
            calibration_dataset=options.calib,
            ignored_scope=options.ignore,
            plan=options.plan,
            seed=options.seed,
            portable=options.portable,
            kernels=options.kernels,
            with_onnx=not options.no_onnx,
            tuned=not options.no_tuned,
            use_cuda_graph=options.use_cuda_graph,
            **cache_arguments(options),
            output=options.output,
            progress=progress,
        )
    _print(options, session.report, print_report)
    if isinstance(session, Unloaded):
        print(f"undense: compiled, and not run here: {session.reason}", file=sys.stderr)
    return EXIT_OK


def _inspect(options: argparse.Namespace) -> int:
    from .inspection import graph_text, inspect
    from .runtime.report import print_report

    if options.diff:
        before, after = (
            graph_text(source).splitlines(keepends=True)
            for source in (options.source, options.diff)
        )
        changes = difflib.unified_diff(before, after, options.source, options.diff)
        print("".join(changes), end="")
    elif options.graph:
        print(graph_text(options.source), end="")
    else:
        _print(options, inspect(options.source), print_report)
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    from .runtime.arrays import as_declared, read_npz, write_npz
    from .runtime.session import load

    session = load(options.artifact, options.device, num_threads=options.threads)
    inputs = as_declared(read_npz(options.input), session.inputs)
    write_npz(options.output, session.run(inputs))
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from .runtime.report import print_verification
    from .runtime.session import load
    from .runtime.verify import verify

    if options.input and not options.against:
        raise InputError("--input needs --against MODEL, which gives the outputs to compare with")
    session = load(options.artifact, options.device)
    fresh = None
    if options.against:
        inputs = _samples(session, options.input)
        with dense_model(options.against) as dense:
            fresh = [(sample, dense.run(dense.typed(sample))) for sample in inputs]
    found = verify(session, fresh)
    _print(options, found.to_json(), print_verification)
    return EXIT_OK if found.holds else EXIT_DOES_NOT_HOLD


def _bench(options: argparse.Namespace) -> int:
    from .runtime.bench import bench
    from .runtime.profile import profile
    from .runtime.report import print_fields, print_profile
    from .runtime.session import load

    if options.profile and options.against:
        raise InputError("--profile looks into the artifact alone; leave --against out")
    session = load(options.artifact, options.device, num_threads=options.threads)
    if session.device != "cpu" and options.against:
        raise InputError(
            f"--against runs the dense model on the CPU and {options.artifact} runs on "
            f"{session.device}: compile it with --scheme dense for the same target and bench both"
        )
    inputs = _samples(session, options.input)[0]
    if options.profile:
        _print(options, profile(session, inputs, repeats=options.repeats), print_profile)
        return EXIT_OK
    with dense_model(options.against, session.num_threads) as dense:
        against = None
        if dense is not None:
            given = dense.typed(inputs)  # beforehand, so that it takes no part in the time
            against = lambda _: dense.run(given)  # noqa: E731
        found = bench(session, against, inputs, repeats=options.repeats)
    _print(options, found, print_fields)
    return EXIT_OK


def _tune(options: argparse.Namespace) -> int:
    from .backend.tuning.artifact import tune
    from .backend.tuning.cuda.tune import export_candidates, merge_results
    from .runtime.progress import progress_bar
    from .runtime.report import print_exported, print_tuning

    ways = ("export", "merge", "tracker")
    given = [f"--{name}" for name in ways if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"give {' or '.join(given)}: each measures elsewhere in its own way")
    rows = _numbers("--rows", options.rows) if options.rows else None
    with progress_bar(quiet=options.quiet) as progress:
        if options.export:
            found = export_candidates(
                options.artifact, options.export,
                trials=options.trials, rows=rows, progress=progress,
            )  # fmt: skip
            _print(options, found, print_exported)
            return EXIT_OK
        if options.merge:
            found = merge_results(options.artifact, options.merge)
        else:
            found = tune(
                options.artifact,
                trials=options.trials,
                rows=rows,
                threads=options.threads,
                tracker=options.tracker,
                progress=progress,
            )
    _print(options, found, print_tuning)
    return EXIT_DOES_NOT_HOLD if found["holds"] is False else EXIT_OK


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give numbers with commas between them") from None


def _doctor(options: argparse.Namespace) -> int:
    from .backend.doctor import examine_machine, examine_model
    from .runtime.report import print_fields

    found = examine_machine()
    if options.model:
        from .frontend.load import load

        found["model"] = examine_model(load(options.model))
    _print(options, found, print_fields)
    return EXIT_OK if found["usable"] else EXIT_DOES_NOT_HOLD


def _cache(options: argparse.Namespace) -> int:
    from .runtime.report import print_fields

    _print(options, cache_contents(options), print_fields)
    return EXIT_OK


def _samples(session: Session, path: str | None) -> list[dict[str, Any]]:
    """One sample of a file, or the samples that were stored with the artifact."""
    from .runtime.arrays import as_declared, read_npz
    from .runtime.verify import stored_inputs

    if path is None:
        return stored_inputs(session.artifact)
    return [as_declared(read_npz(path), session.inputs)]


def _print(options: argparse.Namespace, found: dict[str, Any], show: Callable[..., None]) -> None:
    if options.json:
        print(json.dumps(found, indent=2))
    elif not options.quiet:
        show(found)


if __name__ == "__main__":
    sys.exit(main())
