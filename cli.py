"""`undense`: compile, inspect, run, verify, bench and doctor on the command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .passes.errors import InputError, UndenseError

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
        return _fail(options, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        return _fail(options, "interrupted; nothing was written")
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
    compiling.add_argument("--target", default="llvm", help="llvm (default) or ort-cpu")
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
        "--no-onnx", action="store_true", help="for a TVM target: leave model.onnx out"
    )

    inspecting = verb("inspect", _inspect, "list the linears of a model or artifact, and why")
    inspecting.add_argument("source", metavar="OUT|MODEL")
    inspecting.add_argument("--graph", action="store_true", help="print the graph as text")
    inspecting.add_argument("--diff", metavar="OTHER", help="compare the graphs of two models")

    running = verb("run", _run, "run an artifact once", prints_table=False)
    running.add_argument("artifact", metavar="OUT")
    running.add_argument("--input", metavar="IN.npz", required=True, help="one array an input")
    running.add_argument("--output", metavar="OUT.npz", required=True)
    running.add_argument("--threads", type=int, metavar="N")

    verifying = verb("verify", _verify, "rerun the stored samples; exit 1 if it does not hold")
    verifying.add_argument("artifact", metavar="OUT")
    verifying.add_argument("--against", metavar="MODEL", help="take fresh outputs of this model")
    verifying.add_argument("--input", metavar="IN.npz", help="with --against: take fresh inputs")

    timing = verb("bench", _bench, "time an artifact, interleaved with the dense model")
    timing.add_argument("artifact", metavar="OUT")
    timing.add_argument("--against", metavar="MODEL", help="the dense model, run by ONNX Runtime")
    timing.add_argument("--input", metavar="IN.npz", help="default: the first stored sample")
    timing.add_argument("--threads", type=int, metavar="N")
    timing.add_argument("--repeats", type=int, default=20)

    checking = verb("doctor", _doctor, "what is installed and usable, and the traps of a model")
    checking.add_argument("model", metavar="MODEL.onnx", nargs="?")
    return parser


_DESCRIPTION = "Replaces the dense layers of an exported model by structured ones and compiles it."
_SCHEMES = "int_codes{bits=4}, trit_planes{planes=2}, low_rank{ratio=0.5}, monarch{ratio=0.5}"


def _compile(options: argparse.Namespace) -> int:
    from .compiler import compile
    from .passes.rules import read_rules
    from .progress import progress_bar
    from .runtime.report import print_report

    if options.rules and options.scheme != "auto":
        raise InputError("give --scheme or --rules; a rule that matches '*' serves the rest")
    with progress_bar(quiet=options.quiet) as progress:
        session = compile(
            options.model,
            target=options.target,
            scheme=read_rules(options.rules) if options.rules else options.scheme,
            budget=options.budget,
            calibration_dataset=options.calib,
            ignored_scope=options.ignore,
            plan=options.plan,
            seed=options.seed,
            portable=options.portable,
            with_onnx=not options.no_onnx,
            output=options.output,
            progress=progress,
        )
    if options.json:
        print(json.dumps(session.report, indent=2))
    elif not options.quiet:
        print_report(session.report)
    return EXIT_OK


def _inspect(options: argparse.Namespace) -> int:
    from .inspection import diff_of, graph_of, report_of
    from .runtime.report import print_report

    if options.diff:
        print(diff_of(options.source, options.diff), end="")
    elif options.graph:
        print(graph_of(options.source), end="")
    elif options.json:
        print(json.dumps(report_of(options.source), indent=2))
    else:
        print_report(report_of(options.source))
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    from .runtime.arrays import read_npz, write_npz
    from .runtime.session import load

    session = load(options.artifact, num_threads=options.threads)
    write_npz(Path(options.output), session.run(read_npz(options.input)))
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from .runtime.report import print_table
    from .runtime.verify import verify

    fresh = None
    if options.against:
        from .inspection import fresh_outputs

        fresh = fresh_outputs(options.artifact, options.against, options.input)
    elif options.input:
        raise InputError("--input needs --against MODEL, which gives the outputs to compare with")
    found = verify(options.artifact, fresh)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    elif not options.quiet:
        print_table("verify", found.to_json())
    return EXIT_OK if found.holds else EXIT_DOES_NOT_HOLD


def _bench(options: argparse.Namespace) -> int:
    from .inspection import bench_against
    from .runtime.report import print_table

    found = bench_against(
        options.artifact,
        options.against,
        options.input,
        threads=options.threads,
        repeats=options.repeats,
    )
    if options.json:
        print(json.dumps(found, indent=2))
    elif not options.quiet:
        print_table("bench", found)
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine
    from .runtime.report import print_table

    found = examine(options.model)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print_table("doctor", found)
    return EXIT_OK if found["usable"] else EXIT_DOES_NOT_HOLD


if __name__ == "__main__":
    sys.exit(main())
