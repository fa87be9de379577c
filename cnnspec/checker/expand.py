"""Expansion of a Model into nodes: enter blocks, unroll repeats, decide conditions, compute every shape.

After an error a tensor is unknown (`None`). Nothing is reported about elements that depend on it, so one mistake gives
one diagnostic.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cnnspec import ir, shapes
from cnnspec.checker.budget import Budget
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import OMITTED, Frame, MaybeTensor, Module, Omitted, Tensor
from cnnspec.checker.graph_builder import GraphBuilder, Misfit
from cnnspec.checker.module_names import ModuleNamer, Namespace
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Label, Reporter
from cnnspec.ir.evaluate import Template, Unknown, evaluate, reads_image, show
from cnnspec.ops import OPS, Op, ShapeError
from cnnspec.ops.inits import InitScheme, allowed_inits, listed_inits
from cnnspec.schema import Interval, OpName, Type
from cnnspec.semantics.context import SourceMap

if TYPE_CHECKING:
    from cnnspec.checker.label_hints import LabelHints
    from cnnspec.checker.shape_errors import ShapeConflicts

_MAX_MESSAGE = 500
_WEIGHT = Type("float")


class Expander:
    """Expands a Model.

    Args:
        model: The Model.
        source_map: The source position of each piece.
        reporter: Receives the errors.
        max_steps: The limit on elements, if lower than `MAX_STEPS`.
        allow_huge: Raise the limit on the elements of a tensor from `MAX_ELEMENTS` to `MAX_HUGE`.

    Attributes:
        graph: The nodes and scopes so far.
    """

    def __init__(
        self,
        model: ir.Model,
        source_map: SourceMap,
        reporter: Reporter,
        max_steps: int | None = None,
        *,
        allow_huge: bool = False,
    ) -> None:
        self._model, self._reporter = model, reporter
        self._calls = CallStack(source_map)
        self.graph = GraphBuilder(model.inits, model.input, reporter, self._calls, allow_huge=allow_huge)
        self._budget = Budget(reporter, self._calls, self.graph.nodes, max_steps)
        self._values = ValueEvaluator(reporter, self._calls, self._budget)
        self._namer = ModuleNamer(reporter, self._calls, self._values)
        self._operators: dict[tuple[Any, ...], dict[int, Op]] = {}
        self._open_joins = 0
        self._open_modules: list[Module] = []

    @cached_property
    def _conflicts(self) -> ShapeConflicts:
        from cnnspec.checker.shape_errors import ShapeConflicts  # only after an error

        return ShapeConflicts(self._model, self.graph.nodes, self._values, self._reporter, self._calls)

    @cached_property
    def _label_hints(self) -> LabelHints:
        from cnnspec.checker.label_hints import LabelHints  # only after an error

        return LabelHints(self._model, self._reporter, self._calls)

    def _error(self, code: str, message: str, origin: int, help: str | None = None) -> None:
        self._reporter.error(code, message, **self._calls.locate(origin), help=help)

    def run(self) -> MaybeTensor:
        """Expand the network, its auxiliary heads and its named outputs, and return the output of its last statement.

        Raises:
            Reported: A limit is reached.
        """
        self.graph.check_image(self._model.origin)
        constants = {name: evaluate(expr, {}) for name, expr in self._model.constants.items()}
        frame, names = Frame(constants, None), Namespace("")
        image = self._images(frame)
        output = self._body(self._model.body, frame, names, image)
        for head in self._model.aux:
            self._aux_head(head, frame, names)
        for named in self._model.outputs:
            self._named_output(named, frame)
        return output

    def _images(self, frame: Frame) -> Tensor:
        """Return the first image, and define the labels of images with names. Several are channels of one tensor."""
        whole, images = Tensor(ir.IMAGE, self._model.input), list[Tensor]()
        end = 0
        for image in self._model.images:
            start, end = end, end + image.channels
            tensor = whole
            if self._model.several_images:
                channels = self.graph.operator("slice", {"range": Interval((start, end))})
                tensor = self.graph.add(channels, "", (whole,), image.origin)
            frame.labels[image.name], frame.label_origins[image.name] = tensor, image.origin
            images.append(tensor)
        return images[0] if images else whole

    def _named_output(self, named: ir.Output, frame: Frame) -> None:
        source = self._reference(named.source, named.origin, frame)
        if source is not None and source.node < len(self._model.several_images):
            message = f"the output `{named.name}` is the image itself: no layer computes it"
            self._error("E0108", message, named.origin, "name the label of a statement with layers")
        elif source is not None:
            self.graph.outputs[named.name] = source.node

    def _aux_head(self, head: ir.Aux, frame: Frame, names: Namespace) -> None:
        self.graph.current_head = head.name
        source = self._reference(head.source, head.origin, frame)
        inner = frame.inner(source)
        weight = self._values.argument(head.weight, inner, _WEIGHT, "weight")
        path = self._namer.claim(names, head.name, head.origin)
        self.graph.scopes[path] = ""
        self.graph.origins[path] = self._calls.source_map[head.origin]
        output = self._body(head.body, inner, Namespace(path), source)
        self.graph.close_scope(path, output)
        self.graph.add_aux_head(output, weight)

    # --- statements ------------------------------------------------------------------------------

    def _body(self, body: Sequence[ir.Statement], frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor:
        """Run statements; the output of one is the input of the next."""
        output = self._statements(body, frame, names, x)
        assert output is not OMITTED
        return output

    def _statements(
        self,
        body: Sequence[ir.Statement],
        frame: Frame,
        names: Namespace,
        x: MaybeTensor | Omitted,
        *,
        omittable: bool = False,
    ) -> MaybeTensor | Omitted:
        """Run statements; if `omittable`, the only pipeline may be omitted."""
        for statement in body:
            frame.entering = entering = None if x is OMITTED else x
            if not isinstance(statement, ir.Flow):
                x = x if self._declare(statement, frame) else None
                continue
            x = self._flow(statement, frame, names, entering)
            if x is OMITTED and not (omittable and sum(isinstance(other, ir.Flow) for other in body) == 1):
                help = "use `nothing` only as a branch of `add`, `mul` or `concat`"
                self._error("E0216", "`nothing` is not allowed outside a join", statement.origin, help)
                x = None
        return x

    def _declare(self, statement: ir.Let | ir.Require, frame: Frame) -> bool:
        """Run a statement that has no tensor; return False if a `require` fails."""
        if isinstance(statement, ir.Let):
            value = self._values.local(statement.value, frame)
            frame.define(statement.name, value, varies=reads_image(statement.value))
        elif self._values.condition(statement.condition, frame) is False:
            message = "a `require` condition is false"
            if statement.message:
                template = Template.of(statement.message, statement.holes)
                message = self._values.fill(template, frame) or statement.message
            self._error("E0402", message[:_MAX_MESSAGE], statement.origin)
            return False
        return True

    def _flow(self, flow: ir.Flow, frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor | Omitted:
        """Run a pipeline if its condition holds."""
        if flow.condition is not None:
            condition = self._values.condition(flow.condition, frame)
            if condition is not True:
                tables = [e for e in flow.elements if isinstance(e, ir.Braces) and e.table]
                rows = [row for table in tables for row in table.body if isinstance(row, ir.Flow)]
                frame.skipped_labels.update(skipped.label for skipped in (flow, *rows) if skipped.label)
                return x if condition is False else None
        if flow.label is None:
            return self._pipeline(flow.elements, frame, names, x)
        return self._labeled(flow, names.next_stage() if flow.counted else flow.label, frame, names, x)

    def _labeled(
        self, flow: ir.Flow, label: str, frame: Frame, names: Namespace, x: MaybeTensor
    ) -> MaybeTensor | Omitted:
        """Run a labeled pipeline. The label names a single call, or else a scope of its own."""
        single = flow.elements[0] if len(flow.elements) == 1 else None
        if isinstance(single, (ir.In, ir.Reference, ir.Again, ir.Broken)):
            output = self._element(single, frame, names, x)
            if label in frame.labels and not isinstance(single, ir.Broken):
                self._namer.report_duplicate(names, label, flow.origin, frame.label_origins.get(label))
        else:
            output = self._module(flow, label, frame, names, x)
        if output is not OMITTED:
            frame.labels[label] = output
            frame.label_origins[label] = flow.origin
        return output

    def _module(
        self, flow: ir.Flow, label: str, frame: Frame, names: Namespace, x: MaybeTensor
    ) -> MaybeTensor | Omitted:
        """Run a labeled pipeline that is a module, and record it for `again`."""
        start = len(self.graph.nodes)
        module = Module(names.join(label), frame, x, flow.origin, range(start, start)) if x is not None else None
        if module is not None:
            self._open_modules.append(module)
        single = flow.elements[0] if len(flow.elements) == 1 else None
        if isinstance(single, ir.Call) and single.repeat is None:
            output = self._call(single, frame, names, x, label, flow.origin)
        else:
            path = self._namer.claim(names, label, flow.origin)
            self.graph.scopes.setdefault(path, "")
            self.graph.origins[path] = self._calls.source_map[flow.origin]
            output = self._pipeline(flow.elements, frame, Namespace(path), x)
            self.graph.close_scope(path, output)
        if module is not None:
            self._open_modules.pop()
            module.nodes = range(start, len(self.graph.nodes))
            if isinstance(output, Tensor) and module.nodes:
                module.output = output
                frame.modules[label] = module
        return output

    def _pipeline(
        self, elements: Sequence[ir.Element], frame: Frame, names: Namespace, x: MaybeTensor
    ) -> MaybeTensor | Omitted:
        """Run elements; the output of one is the input of the next."""
        output: MaybeTensor | Omitted = x
        for index, element in enumerate(elements):
            if output is OMITTED:
                message, help = "unexpected element after `nothing`", "remove the elements after `nothing`"
                help = self._moved_into(elements[index - 1], elements[index:]) or help
                self._error("E0216", message, element.origin, help)
                return None
            output = self._element(element, frame, names, output)
        return output

    def _moved_into(self, choice: ir.Element, following: Sequence[ir.Element]) -> str | None:
        """Return help that moves elements after an `if` into its group that is not `nothing`."""
        source_map = self._calls.source_map
        first, last = (source_map.wholes.get(e.origin) or source_map[e.origin] for e in (following[0], following[-1]))
        if not isinstance(choice, ir.If) or (whole := source_map[choice.origin]) is None or not (first and last):
            return None
        moved, code = first.to(last).text, whole.text
        bodies = [body for body in (choice.then, choice.otherwise) if not _is_nothing(body)]
        if len(bodies) != 1:
            return None
        if not bodies[0]:
            written = f"{code} else {{ {moved} }}"
        elif (end := source_map.wholes.get(bodies[0][-1].origin)) is not None:
            cut = end.end - whole.start
            written = f"{code[:cut]} | {moved}{code[cut:]}"
        else:
            return None
        return f"move `| {moved}` into the braces: `{' '.join(written.split())}`"

    # --- elements --------------------------------------------------------------------------------

    def _element(self, element: ir.Element, frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor | Omitted:
        self._budget.enter(element.origin)
        if type(element) is ir.Call:  # nearly all elements are calls
            output = self._call(element, frame, names, x)
        else:
            output = self._other_element(element, frame, names, x)
        self._budget.leave()
        return output

    def _other_element(
        self, element: ir.Element, frame: Frame, names: Namespace, x: MaybeTensor
    ) -> MaybeTensor | Omitted:
        match element:
            case ir.Braces(table=True):
                return self._rows(element, frame, names, x)
            case ir.Braces():
                return self._statements(element.body, frame.inner(x), names, x, omittable=True)
            case ir.Repeat():
                return self._repeat(element, frame, names, x)
            case ir.Join():
                return self._join(element, frame, names, x)
            case ir.If():
                condition = self._values.condition(element.condition, frame)
                if condition is None:
                    return None
                body = element.then if condition else element.otherwise
                return self._statements(body, frame.inner(x), names, x, omittable=True)
            case ir.Reference():
                return self._reference(element.label, element.origin, frame)
            case ir.Again():
                return self._again(element, frame, x)
            case ir.In():
                return self._entering(frame)
            case ir.Nothing():
                return OMITTED
            case _:
                return None

    def _rows(self, table: ir.Braces, frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor | Omitted:
        """Run the calls of a table, which are part of its statement: `in` is the same in all of them."""
        output: MaybeTensor | Omitted = x
        for row in table.body:
            if isinstance(row, ir.Flow) and output is not OMITTED:
                output = self._flow(row, frame, names, output)
        return output

    def _repeat(self, element: ir.Repeat, frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor:
        for iteration in range(self._values.repetitions(element.count, frame)):
            self._budget.step(element.origin)
            inner = frame.inner(x)
            inner.repeat = element
            if element.variable is not None:
                inner.define(element.variable, iteration, varies=True)
            x = self._body(element.body, inner, names, x)
        return x

    def _entering(self, frame: Frame) -> MaybeTensor:
        """Return the tensor that enters the statement."""
        for module in self._open_modules:
            if module.frame is frame and frame.entering != module.x:  # of the row of a table
                module.outside = "in"
        return frame.entering

    def _reference(self, label: str, origin: int, frame: Frame) -> MaybeTensor:
        """Return the output of a labeled statement; inner braces come first."""
        scope = self._scope_of(label, origin, frame)
        if scope is None:
            return None
        for module in self._open_modules:
            if any(scope is outer for outer in module.frame.outward()):
                module.outside = f"@{label}"
        return scope.labels[label]

    def _again(self, element: ir.Again, frame: Frame, x: MaybeTensor) -> MaybeTensor:
        """Apply the module of a labeled statement to another tensor."""
        label = element.module.label
        scope = self._scope_of(label, element.module.origin, frame)
        if scope is None or scope.labels[label] is None:
            return None
        module = scope.modules.get(label)
        if module is None:
            labels = self._calls.label(scope.label_origins[label], "defined here")
            message = f"`{label}` has no module that can be used again: it only names a tensor"
            help = "label the statement with the layers, and write `again` with that label"
            self._reporter.error("E0220", message, **self._calls.locate(element.origin, labels=labels), help=help)
            return None
        if module.outside:
            labels = self._calls.label(module.origin, f"also reads `{module.outside}`")
            message = f"`{label}` cannot be used again: it reads `{module.outside}` in addition to its input"
            help = f"move `{module.outside}` out of `{label}`: a module that is used again is a function of its input"
            self._reporter.error("E0220", message, **self._calls.locate(element.origin, labels=labels), help=help)
            return None
        return None if x is None else self._reuse(module, label, element.origin, x)

    def _reuse(self, module: Module, label: str, origin: int, x: Tensor) -> MaybeTensor:
        """Add the nodes of a module again, or report why they do not fit the tensor."""
        built, given = module.x.shape, x.shape
        if len(built) != len(given) or built[0] != given[0]:
            kind, unit = ("feature maps", "channels") if shapes.is_map(built) else ("flat features", "features")
            why = f"it is built for {f'{built[0]:,} {unit}' if len(built) == len(given) else kind}"
            span = self._calls.source_map[module.origin]
        else:
            try:
                return self.graph.add_again(module, x, origin, self._budget.step)
            except Misfit as misfit:
                why, span = misfit.why, misfit.node.origin
        labels = [Label(span, f"first used for {shapes.text(built)}")] if span else []
        message = f"`{label}` cannot be used again for {shapes.text(given)}: {why}"
        location = self._calls.locate(origin, f"the input is {shapes.text(given)}", labels)
        help = f"give both inputs the same shape, or write the layers of `{label}` again, with weights of their own"
        self._reporter.error("E0314", message, **location, help=help)
        return None

    def _scope_of(self, label: str, origin: int, frame: Frame) -> Frame | None:
        """Return the braces that define a label; inner ones come first."""
        known: list[str] = []
        for scope in frame.outward():
            if label in scope.labels:
                return scope
            if label in scope.skipped_labels:
                message = f"the label `{label}` is not defined: the `when` condition of its statement is false"
                self._error("E0208", message, origin, f"use `@{label}` only where the same condition holds")
                return None
            known += scope.labels
        self._label_hints.report(label, origin, known)
        return None

    def _join(self, element: ir.Join, frame: Frame, names: Namespace, x: MaybeTensor) -> MaybeTensor:
        """Run every branch and join the outputs; a single branch is its own output."""
        inner = frame.inner(x)
        branches = self._branches(element, inner, names, x)
        if not branches:
            message = f"`{element.join}` has no inputs: every branch is `nothing`"
            self._error("E0216", message, element.origin, "keep at least one branch")
            return None
        if len(branches) == 1:
            return branches[0][1]
        known = [(flow, tensor) for flow, tensor in branches if tensor is not None]
        if len(known) < len(branches):
            return None
        op = self.graph.operator(element.join, {})
        try:
            return self.graph.add(op, names.path, [tensor for _, tensor in known], element.origin)
        except ShapeError as error:
            self._conflicts.refuse_join(error, element, known, inner)
            return None

    def _branches(
        self, element: ir.Join, frame: Frame, names: Namespace, x: MaybeTensor
    ) -> list[tuple[ir.Flow, MaybeTensor]]:
        """Run the branches of a join, and return those that are not omitted with their outputs."""
        branches: list[tuple[ir.Flow, MaybeTensor]] = []
        self._open_joins += 1
        for statement in element.body:
            if not isinstance(statement, ir.Flow):
                self._declare(statement, frame)
            elif (output := self._flow(statement, frame, names, x)) is not OMITTED:
                branches.append((statement, output))
        self._open_joins -= 1
        return branches

    # --- calls -----------------------------------------------------------------------------------

    def _call(
        self,
        call: ir.Call,
        frame: Frame,
        names: Namespace,
        x: MaybeTensor,
        label: str | None = None,
        label_origin: int | None = None,
    ) -> MaybeTensor:
        """Run a call in each of its iterations."""
        if call.repeat is None:
            name = self._namer.name(call, frame, names, label, None)
            path = self._namer.claim(names, name, label_origin or call.origin)
            return self._call_once(call, frame, path, x, 0)
        for iteration in range(self._values.repetitions(call.repeat, frame)):
            self._budget.step(call.origin)
            name = self._namer.name(call, frame, names, None, iteration)
            x = self._call_once(call, frame, self._namer.claim(names, name, call.origin), x, iteration)
        return x

    def _call_once(self, call: ir.Call, frame: Frame, path: str, x: MaybeTensor, iteration: int) -> MaybeTensor:
        op = frame.operators.get(id(call)) if frame.operators else None
        if op is None:
            callee = self._callee(call, frame)
            if callee is None:
                return None
            if callee in self._model.blocks and not call.variable:
                return self._call_block(self._model.blocks[callee], call, frame, path, x, iteration)
            op = self._operator(callee, call, frame)
        like = self._tensor(call.args["like"], frame) if op is not None and op.sized_by_input else x
        if op is None or x is None or like is None:
            return None
        try:
            return self.graph.add(op, path, (x, like) if op.sized_by_input else (x,), call.origin)
        except ShapeError as error:
            self._conflicts.refuse(error, op, call, x, joined=self._open_joins > 0)
            return None

    def _tensor(self, expr: ir.Expr, frame: Frame) -> MaybeTensor:
        """Return the tensor that an argument names."""
        name = str(expr.value)
        return self._entering(frame) if name == "in" else self._reference(name[1:], expr.origin, frame)

    def _callee(self, call: ir.Call, frame: Frame) -> str | None:
        """Return the name of the called block or operator; a parameter of the type `op` is replaced by its value."""
        if not call.variable:
            return call.callee
        value = frame.values.get(call.callee)
        if isinstance(value, OpName):
            return str(value)
        if value is not None and not isinstance(value, Unknown):
            message = f"`{call.callee}` is {show(value)}, not an operator or block"
            name = call.callee
            help = f"call an operator or block by its name, or define `{name}` as an operator: `let {name} = relu`"
            self._error("E0204", message, call.origin, help)
        return None

    def _operator(self, name: str, call: ir.Call, frame: Frame) -> Op | None:
        """Return the operator of a call with its arguments, or `None` after an error."""
        kind = OPS[name]
        settings = {
            key: self._values.argument(expr, frame, kind.parameters[key].type, key) for key, expr in call.args.items()
        }
        if not self._accepts_init(name, call, settings.get("init")):
            return None
        if missing := [required for required in kind.required if required not in settings]:
            listed = ", ".join(f"`{required}`" for required in missing)
            message = f"the operator `{name}` cannot be used here: it requires {listed}"
            self._error("E0203", message, call.origin, "pass an operator without required arguments, such as `relu`")
            return None
        if None in settings.values():
            return None
        op = self.graph.operator(name, settings)
        if frame.operators is not None and not any(map(reads_image, call.args.values())):
            frame.operators[id(call)] = op
        return op

    def _accepts_init(self, name: str, call: ir.Call, scheme: object) -> bool:
        """Check that an initialization applies to the weights of an operator."""
        if not isinstance(scheme, InitScheme) or scheme.name in allowed_inits(name):
            return True
        message = f"`{scheme.name}` cannot initialize the weights of `{name}`"
        self._error("E0215", message, call.args["init"].origin, f"choose from {listed_inits(name)}")
        return False

    def _call_block(
        self, block: ir.Block, call: ir.Call, frame: Frame, path: str, x: MaybeTensor, iteration: int
    ) -> MaybeTensor:
        self.graph.scopes[path] = block.name
        self.graph.origins[path] = self._calls.source_map[call.origin]
        inner = self._values.block_frame(block, call, frame, x, iteration)
        if inner is None:
            return None
        for parameter in block.parameters:
            if parameter.type == "tensor":
                inner.values.pop(parameter.name, None)
                tensor = inner.labels[parameter.name] = self._tensor(call.args[parameter.name], frame)
                inner.label_origins[parameter.name] = parameter.origin
                if tensor is not None:
                    self.graph.tensors.setdefault(path, {})[parameter.name] = tensor.node
        values = (id(block), *[repr(inner.values.get(parameter.name)) for parameter in block.parameters])
        inner.operators = self._operators.setdefault(values, {})
        self._calls.push(call.origin, iteration)
        output = self._body(block.body, inner, Namespace(path), x)
        self._calls.pop()
        self.graph.close_scope(path, output)
        return output


def _is_nothing(body: Sequence[ir.Statement]) -> bool:
    """Return whether a body consists of `nothing`, perhaps in braces of its own."""
    flows = [statement for statement in body if isinstance(statement, ir.Flow)]
    if len(flows) != 1 or len(flows[0].elements) != 1:
        return False
    match flows[0].elements[0]:
        case ir.Nothing():
            return True
        case ir.Braces(body=inner):
            return _is_nothing(inner)
        case _:
            return False
