"""`undense.Dense(x, Wᵀ)` -> `undense.LowRank(x, *factors)`: the one pass that edits weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from .bias_correction import correct_bias, has_bias
from .canonicalize import DENSE, to_dense
from .errors import PlanError
from .linalg import Matrix
from .nodes import SITE, metadata
from .plan import Choice, Plan, site_of
from .sites import Site, Use, find_sites
from .structures.base import DOMAIN, Form, Structure


@dataclass(frozen=True, eq=False)
class Fitted:
    """A structure and the tensors that it packed for one site.

    Attributes:
        structure: resolved.
        tensors: what `structure.pack` gave, in its order.
        bias_correction: what is added to the bias behind each use; None for nothing.
    """

    structure: Structure
    tensors: dict[str, ir.TensorProtocol]
    bias_correction: Matrix | None = None

    @property
    def dtype(self) -> ir.DataType:
        """The floating type of the tensors, which the node takes and gives."""
        types = (tensor.dtype for tensor in self.tensors.values())
        return next(dtype for dtype in types if dtype.is_floating_point())


class ReplaceDense(ir.passes.InPlacePass):
    """Carries out a plan: every use of a site that is not to stay dense reads the packed tensors.

    The tensors become initializers `{site}.{tensor}`, shared by all uses; biases take up the mean
    error of the fits, as initializers `{site}.bias`; the functions that give the nodes their
    meaning are added; constants and nodes that nothing reads any more are removed. Activations of
    another type than the factors are cast to it and back. Sites that an earlier run replaced are
    left as they are.
    """

    def __init__(self, plan: Plan, fitted: Mapping[str, Fitted], form: Form = "fast") -> None:
        super().__init__()
        self.plan, self.fitted, self.form = plan, fitted, form

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            PlanError: a site that the model does not have or that has another shape there, a
                scheme that gathers cannot use, a correction of a bias that is not there, or
                tensors whose names are taken; in that case the model is as it was.
        """
        chosen = self._chosen(model)
        functions = _Functions(model, self.form)
        for site, fitted in chosen:
            tensors = _initializers(model.graph, site.name, fitted)
            for use in site.uses:
                _swap(site, use, fitted, tensors, functions)
        restored = _restore(model)
        if chosen or restored:
            common.RemoveUnusedNodesPass()(model)
            common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return ir.passes.PassResult(model, bool(chosen or restored))

    def _chosen(self, model: ir.Model) -> list[tuple[Site, Fitted]]:
        sites = {site.name: site for site in find_sites(model)[0]}
        replaced = {node.metadata_props.get(SITE) for node in model.graph if node.domain == DOMAIN}
        chosen = []
        for choice in self.plan.sites:
            if choice.name in replaced:
                continue
            site = site_of(choice, sites)
            if choice.scheme != "dense":
                chosen.append((site, self._fitted(choice, site)))
        taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
        taken |= set(model.graph.initializers) | {value.name for value in model.graph.inputs}
        for site, fitted in chosen:
            for name in (_tensor_name(site.name, suffix) for suffix in fitted.tensors):
                if name in taken:
                    raise PlanError(
                        f"{site.name}: the model already has a value {name!r}; rename that value"
                    )
        return chosen

    def _fitted(self, choice: Choice, site: Site) -> Fitted:
        fitted = self.fitted.get(choice.name)
        if fitted is None:
            raise PlanError(f"{choice.name}: {choice.scheme} was chosen, but nothing was fitted")
        if fitted.bias_correction is not None and not has_bias(site):
            raise PlanError(
                f"{choice.name}: it was fitted with a bias behind it, which this model does not "
                "have; fit it again"
            )
        return fitted


def _tensor_name(site: str, suffix: str) -> str:
    return f"{site}.{suffix}"


def _initializers(graph: ir.Graph, site: str, fitted: Fitted) -> list[ir.Value]:
    tape = ir.tape.Tape(graph)
    return [
        tape.initializer(tensor, _tensor_name(site, suffix))
        for suffix, tensor in fitted.tensors.items()
    ]


def _swap(
    site: Site, use: Use, fitted: Fitted, tensors: list[ir.Value], functions: _Functions
) -> None:
    """Replaces the node of one use by the structured node that reads `tensors`."""
    gathers = use.form == "gather"
    old = use.node if gathers else to_dense(site, use)
    function = functions.of(fitted.structure, gathers)
    structure, shape = fitted.structure, (site.out_features, site.in_features)
    attributes = structure.attributes(*shape, functions.form)
    tape, result = ir.tape.Tape(), old.outputs[0]
    if fitted.bias_correction is not None and not gathers:
        correct_bias(result, fitted.bias_correction, site.name)
    x = use.x if gathers else old.inputs[0]
    if not gathers and use.dtype != fitted.dtype:
        x = _cast(tape, x, fitted.dtype, old)
    y = tape.op(
        function.name,
        [x, *tensors],
        attributes={name: attributes[name] for name in function.attributes if name in attributes},
        domain=DOMAIN,
        overload=function.overload,
        metadata_props={**old.metadata_props, **metadata(site.name, structure, *shape)},
    )
    structured = tape.nodes[-1]
    y.dtype, y.shape = fitted.dtype, result.shape
    if use.dtype != fitted.dtype:
        y = _cast(tape, y, use.dtype, old)
    _take_place(old, structured, tape, y)


def _cast(tape: ir.tape.Tape, value: ir.Value | None, dtype: ir.DataType, old: ir.Node) -> ir.Value:
    cast = tape.op(
        "Cast", [value], attributes={"to": dtype}, metadata_props=dict(old.metadata_props)
    )
    cast.dtype, cast.shape = dtype, None if value is None else value.shape
    return cast


def _take_place(old: ir.Node, structured: ir.Node, tape: ir.tape.Tape, y: ir.Value) -> None:
    result = old.outputs[0]
    name, output_name = old.name, result.name
    old.prepend(tape.nodes)
    y.type, y.shape = result.type or y.type, result.shape or y.shape
    y.metadata_props.update(result.metadata_props)
    result.replace_all_uses_with(y, replace_graph_outputs=True)
    if old.graph is not None:
        old.graph.remove(old, safe=True)
    structured.name, y.name = name, output_name


def _restore(model: ir.Model) -> bool:
    """Turns every `undense.Dense` that is left back into a MatMul."""
    left = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, DENSE)]
    for node in left:
        node.domain, node.op_type = "", "MatMul"
    return bool(left)


class _Functions:
    """Adds the functions of structures to a model, under an overload where bodies differ."""

    def __init__(self, model: ir.Model, form: Form) -> None:
        self.model, self.form = model, form
        self._known: dict[tuple[Structure, bool], ir.Function] = {}

    def of(self, structure: Structure, gathers: bool) -> ir.Function:
        """The function of `structure`, or its gather, as it stands in the model."""
        key = (structure, gathers)
        if key not in self._known:
            opset = self.model.opset_imports[""]
            write = structure.gather_function if gathers else structure.function
            self._known[key] = self._registered(write(self.form, opset))
        return self._known[key]

    def _registered(self, function: ir.Function) -> ir.Function:
        for domain, version in {**function.opset_imports, DOMAIN: 1}.items():
            self.model.opset_imports.setdefault(domain, version)
        functions, overloads = self.model.functions, 1
        while function.identifier() in functions:
            known = functions[function.identifier()]
            if _text(known) == _text(function):
                return known
            overloads += 1
            function.overload = str(overloads)
        functions[function.identifier()] = function
        return function


def _text(function: ir.Function) -> bytes:
    """All that gives a function its meaning, without the overload it goes by."""
    proto = ir.serde.serialize_function(function)
    proto.ClearField("overload")
    return bytes(proto.SerializeToString(deterministic=True))
