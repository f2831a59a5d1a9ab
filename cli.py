"""`undense`: the verbs of the command line, from compile to doctor."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .options import parser
from .passes.errors import InputError, UndenseError, cause_of

if TYPE_CHECKING:
    from .runtime.session import Session

EXIT_OK, EXIT_DOES_NOT_HOLD, EXIT_BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 1 (it does not hold) or 2 (bad input, said in one sentence)."""
    options = parser(_VERBS).parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.showwarning = _show_warning
    try:
        _check_given(options)
        return int(options.run(options))
    except UndenseError as error:
        return _fail(options, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(options, f"{where}{cause_of(error)}")
    except ModuleNotFoundError as error:
        return _fail(options, f"{error.name} is missing: pip install 'undense[cpu]'")
    except KeyboardInterrupt:
        return _fail(options, "interrupted; nothing was written")
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(options, f"internal error, please report it with --traceback: {cause}")


def _check_given(options: argparse.Namespace) -> None:
    """Refuses an option with nothing in it, as a variable of a shell that is not set leaves it."""
    for name, value in vars(options).items():
        if value == "":
            raise InputError(f"{name.replace('_', '-')} is empty; give a value or leave it out")


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


def _compile(options: argparse.Namespace) -> int:
    from .compiler import compile
    from .runtime.progress import progress_bar
    from .runtime.report import print_report
    from .runtime.unloaded import Unloaded

    decisions = {**_decisions(options), **_validation(options)}
    with progress_bar(quiet=options.quiet) as progress:
        session = compile(
            options.model,
            **decisions,
            plan=options.plan,
            portable=options.portable,
            with_onnx=not options.no_onnx,
            tuned=not options.no_tuned,
            use_cuda_graph=options.use_cuda_graph,
            output=options.output,
            progress=progress,
        )
    _print(options, session.report, print_report)
    if isinstance(session, Unloaded):
        print(f"undense: compiled, and not run here: {session.reason}", file=sys.stderr)
    return EXIT_OK


def _plan(options: argparse.Namespace) -> int:
    from .compiler import plan
    from .runtime.plan_report import print_plan
    from .runtime.progress import progress_bar

    decisions = _decisions(options)
    output = Path(options.output)
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output}: no file can be written there; give the path of a plan.json")
    with progress_bar(quiet=options.quiet) as progress:
        planned = plan(options.model, **decisions, point=options.point, progress=progress)
    planned.plan.save(output)
    _print(options, planned.report, print_plan)
    return EXIT_OK


def _decisions(options: argparse.Namespace) -> dict[str, Any]:
    """What `compile` and `plan` are given alike.

    Raises:
        InputError: options that contradict each other.
        SchemeError: rules that cannot be read.
    """
    from .passes.rules import read_rules

    if options.cache and options.no_cache:
        raise InputError("--cache names a folder and --no-cache says to use none; give one of them")
    if options.rules and options.scheme != "auto":
        raise InputError("give --scheme or --rules; a rule that matches '*' serves the rest")
    return {
        "target": options.target,
        "dtype": options.dtype,
        "kernels": options.kernels,
        "scheme": read_rules(options.rules) if options.rules else options.scheme,
        "ignored_scope": options.ignore,
        "calibration_dataset": options.calib,
        "budget": options.budget,
        "batch": _numbers("--batch", options.batch),
        "plan_time": options.plan_time,
        "seed": options.seed,
        "lossless": options.lossless,
        "cache": options.cache or not options.no_cache,
        "scheduler": options.scheduler,
    }


def _validation(options: argparse.Namespace) -> dict[str, Any]:
    """The metric that `compile` is held to.

    Raises:
        ValidationError: a function or data that cannot be loaded.
        CalibrationError: no archive of plain arrays.
    """
    from .validation import load_function, read_dataset

    function, data = options.validation, options.validation_data
    return {
        "validation_fn": None if function is None else load_function(function),
        "validation_dataset": None if data is None else read_dataset(data),
        "drop_type": options.drop_type,
    }


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

    session = load(options.artifact, options.device, options.engine, num_threads=options.threads)
    inputs = as_declared(read_npz(options.input), session.inputs)
    write_npz(options.output, session.run(inputs))
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from .runtime.report import print_verification
    from .runtime.session import load
    from .runtime.verify import verify

    if options.input and not options.against:
        raise InputError("--input needs --against MODEL, which gives the outputs to compare with")
    session = load(options.artifact, options.device, options.engine)
    fresh = None
    if options.against:
        inputs = _samples(session, options.input)
        with _dense(options.against) as dense:
            fresh = [(sample, dense.run(dense.typed(sample))) for sample in inputs]
    found = verify(session, fresh)
    _print(options, found.to_json(), print_verification)
    return EXIT_OK if found.holds else EXIT_DOES_NOT_HOLD


def _bench(options: argparse.Namespace) -> int:
    from .runtime.bench import bench
    from .runtime.profile import profile
    from .runtime.report import print_fields, print_profile
    from .runtime.session import load

    _check_number("--repeats", options.repeats, least=1)
    if options.profile and options.against:
        raise InputError("--profile looks into the artifact alone; leave --against out")
    session = load(options.artifact, options.device, options.engine, num_threads=options.threads)
    if session.device != "cpu" and options.against:
        raise InputError(
            f"--against runs the dense model on the CPU and {options.artifact} runs on "
            f"{session.device}: compile it with --scheme dense for the same target and bench both"
        )
    inputs = _samples(session, options.input)[0]
    if options.profile:
        _print(options, profile(session, inputs, repeats=options.repeats), print_profile)
        return EXIT_OK
    with _dense(options.against, session.num_threads) as dense:
        against = None
        if dense is not None:
            given = dense.typed(inputs)  # beforehand, so that it takes no part in the time
            against = lambda _: dense.run(given)  # noqa: E731
        found = bench(session, against, inputs, repeats=options.repeats)
    _print(options, found, print_fields)
    return EXIT_OK


def _dense(path: str | None, threads: int | None = None) -> AbstractContextManager[Any]:
    """The dense model of a file, which needs what loading an artifact does not; None without."""
    if path is None:
        return nullcontext()
    from .frontend.dense import dense_model

    return dense_model(path, threads)


def _tune(options: argparse.Namespace) -> int:
    ways = ("export", "merge", "tracker")
    given = [f"--{name}" for name in ways if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"give {' or '.join(given)}: each measures elsewhere in its own way")
    rows = None if options.rows is None else _numbers("--rows", options.rows)
    _check_number("--trials", options.trials, least=1 if options.export else 0)
    _check_number("--threads", options.threads, least=1)
    if options.merge is not None and not Path(options.merge).is_file():
        raise InputError(f"{options.merge}: there is no such file; --merge takes results.json")
    from .backend.tuning.artifact import tune
    from .backend.tuning.cuda.tune import export_candidates, merge_results
    from .runtime.progress import progress_bar
    from .runtime.report import print_exported, print_tuning

    with progress_bar(quiet=options.quiet) as progress:
        if options.export is not None:
            found = export_candidates(
                options.artifact, options.export,
                trials=options.trials, rows=rows, progress=progress,
            )  # fmt: skip
            _print(options, found, print_exported)
            return EXIT_OK
        if options.merge is not None:
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


def _check_number(option: str, number: int | None, *, least: int) -> None:
    """Refuses a number before anything long begins."""
    if number is not None and number < least:
        raise InputError(f"{option} {number}: give {least} or more")


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
    from .passes.cache import Cache
    from .passes.cache_contents import contents, remove
    from .runtime.report import print_fields

    cache = Cache(options.cache)
    kind = None if options.clear is True else options.clear
    removed = {} if options.clear is None else {"removed": remove(cache, kind)}
    _print(options, {**contents(cache), **removed}, print_fields)
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
        from .runtime.report import report_json

        print(report_json(found), end="")
    elif not options.quiet:
        show(found)


_VERBS = {
    "compile": _compile,
    "plan": _plan,
    "inspect": _inspect,
    "run": _run,
    "verify": _verify,
    "bench": _bench,
    "tune": _tune,
    "cache": _cache,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
