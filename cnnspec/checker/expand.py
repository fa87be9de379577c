"""The Model written out: blocks entered, repeats unrolled, conditions decided, every shape computed.

One rule of names, one rule of shapes. A tensor behind a fault is unknown (`None`); what depends on it
stays silent, so that one fault gives one diagnostic.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cnnspec import ir
from cnnspec.checker.environment import (
    ABSENT,
    Absent,
    Evaluator,
    Flowing,
    Frame,
    LimitReached,
    Namespace,
    Tensor,
    TooLarge,
    labels_of,
)
from cnnspec.checker.memo import Made, Recorder
from cnnspec.diagnostics import Reporter
from cnnspec.ir.evaluate import ExpressionError, Unknown, UnknownShape, evaluate, show
from cnnspec.limits import MAX_DEPTH, MAX_HUGE, MAX_NODES, MAX_STEPS
from cnnspec.ops import JOINS, OPS, Op, ShapeError
from cnnspec.ops.inits import INITS, InitScheme, allowed_inits
from cnnspec.schema import OpName, Type
from cnnspec.semantics.context import Places
from cnnspec.shapes import Shape, numel

if TYPE_CHECKING:
    from cnnspec.checker.shape_errors import ShapeConflicts

_MAX_MESSAGE = 500


class Expansion(Evaluator):
    """Writes a Model out into nodes.

    Attributes:
        nodes: The operators so far, in the order in which they run.
        scopes: The paths that are no operator, with the block that they are a call of.
        ends: The same paths with the node that gives their output.
    """

    def __init__(self, model: ir.Model, places: Places, reporter: Reporter, steps: int | None = None) -> None:
        super().__init__(places, reporter, model.input)
        self._max_steps = min(steps or MAX_STEPS, MAX_STEPS)
        self.model = model
        self.nodes: list[ir.Node] = []
        self.scopes: dict[str, str] = {}
        self.ends: dict[str, int] = {}
        self.aux_heads: list[ir.AuxHead] = []
        self.output: Flowing = None
        self._recorder = Recorder(self.nodes, self.scopes, self.ends, self.make)
        self._inits: dict[str, InitScheme] = {i.target: INITS[i.scheme.name](**i.scheme.args) for i in model.inits}
        self._ops: dict[tuple[Any, ...], Op] = {}
        self._made: dict[tuple[int, tuple[Shape, ...]], Made] = {}
        self._known: dict[Hashable, dict[int, Op]] = {}
        self._labels: dict[str, int] | None = None
        self._aux: str | None = None
        self._steps = 0
        self._depth = 0
        self._joins = 0

    def run(self) -> None:
        """Writes the whole network out.

        Raises:
            LimitReached: It has too many nodes.
        """
        constants = {name: evaluate(expr, {}) for name, expr in self.model.constants.items()}
        image = Tensor(ir.IMAGE, self.model.input)
        frame, names = Frame(constants, image), Namespace("")
        self.output = self.body(self.model.body, frame, names, image)
        for head in self.model.aux:
            self._aux = head.name
            source = self.reference(head.source, head.origin, frame)
            path = self.claim(names, head.name, head.origin)
            self.scopes[path] = ""
            result = self.body(head.body, frame.inner(source), Namespace(path), source)
            self.end(path, result)
            weight = self.value(head.weight, frame, Type("float"), "weight")
            if result is not None and weight is not None:
                self.aux_heads.append(ir.AuxHead(head.name, result.node, weight))
        self._aux = None

    @cached_property
    def _conflicts(self) -> ShapeConflicts:
        from cnnspec.checker.shape_errors import ShapeConflicts  # not before: most networks have none

        return ShapeConflicts(self, self.model, self.nodes)

    def step(self, origin: int) -> None:
        """Counts an element that is entered, and raises `LimitReached` where there are too many."""
        self._steps += 1
        many = len(self.nodes) > MAX_NODES
        if many or self._steps > self._max_steps:
            what = f"{MAX_NODES} operators" if many else f"{self._max_steps} elements and rounds of repeats"
            self.fail("E0404", f"the network has more than the limit of {what}", origin, help="repeat fewer times")
            raise LimitReached

    # --- statements ------------------------------------------------------------------------------

    def body(self, body: Sequence[ir.Statement], frame: Frame, names: Namespace, x: Flowing) -> Flowing:
        """Runs statements below one another; the output of one is the input of the next."""
        for statement in body:
            if isinstance(statement, ir.Flow):
                result = self.flow(statement, frame, names, x)
                if isinstance(result, Absent):
                    self.fail(
                        "E0216",
                        "`nothing` stands outside of a join",
                        statement.origin,
                        help="only a branch of `add`, `mul` or `concat` can be absent",
                    )
                    result = None
                x = result
            elif not self.aside(statement, frame):
                x = None
        return x

    def aside(self, statement: ir.Let | ir.Require, frame: Frame) -> bool:
        """A statement that no tensor flows through; false where it forbids what follows."""
        if isinstance(statement, ir.Let):
            try:
                value = self.evaluate(statement.value, frame)
            except ExpressionError as fault:
                self.fail(fault.code, str(fault), fault.origin, help=fault.help)
                value = Unknown()
            except UnknownShape:
                value = Unknown()
            frame.define(statement.name, value)
        elif self.decide(statement.condition, frame) is False:
            message = self.fill(statement.message, frame) if statement.message else "a requirement does not hold"
            self.fail("E0402", message[:_MAX_MESSAGE], statement.origin)
            return False
        return True

    def flow(self, flow: ir.Flow, frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        """Runs a pipeline, by the naming rule of the language."""
        if flow.condition is not None:
            decision = self.decide(flow.condition, frame)
            if decision is not True:
                if flow.label:
                    frame.absent.add(flow.label)
                return x if decision is False else None
        label = flow.label
        if label is not None and flow.counted:
            label = names.next_stage()
        single = flow.elements[0] if len(flow.elements) == 1 else None
        if label is None:
            result = self.pipeline(flow.elements, frame, names, x)
        elif isinstance(single, ir.Call) and single.repeat is None:
            result = self.call(single, frame, names, x, label, flow.origin)
        elif isinstance(single, (ir.In, ir.Reference, ir.Broken)):
            result = self.element(single, frame, names, x)
        else:
            path = self.claim(names, label, flow.origin)
            self.scopes.setdefault(path, "")
            result = self.pipeline(flow.elements, frame, Namespace(path), x)
            self.end(path, result)
        if label is not None and not isinstance(result, Absent):
            if label in frame.labels and isinstance(single, (ir.In, ir.Reference)):
                self.fail(
                    "E0209",
                    f"two elements of one scope are called `{label}`",
                    flow.origin,
                    help="rename one of the two",
                )
            frame.labels[label] = result
        return result

    def pipeline(self, elements: Sequence[ir.Element], frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        """Runs elements one after another; the output of one is the input of the next."""
        result: Flowing | Absent = x
        for element in elements:
            if isinstance(result, Absent):
                message = "`nothing` stands alone in its branch"
                self.fail("E0216", message, element.origin, help="remove the elements behind it")
                return None
            result = self.element(element, frame, names, result)
        return result

    # --- elements --------------------------------------------------------------------------------

    def element(self, element: ir.Element, frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        """Runs one element."""
        self.step(element.origin)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            message = f"elements stand inside of one another deeper than the limit of {MAX_DEPTH}"
            self.fail("E0405", message, element.origin, help="call fewer blocks from within blocks")
            raise LimitReached
        if type(element) is ir.Call:  # nearly all are
            result = self.call(element, frame, names, x)
        else:
            result = self._element(element, frame, names, x)
        self._depth -= 1
        return result

    def _element(self, element: ir.Element, frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        match element:
            case ir.Braces():
                inner = frame.inner(x)
                if element.table:
                    inner.labels = frame.labels
                return self.branch_body(element.body, inner, names, x)
            case ir.Repeat():
                return self.repeat(element, frame, names, x)
            case ir.Join():
                return self.join(element, frame, names, x)
            case ir.If():
                decision = self.decide(element.condition, frame)
                if decision is None:
                    return None
                return self.branch_body(element.then if decision else element.otherwise, frame.inner(x), names, x)
            case ir.Reference():
                return self.reference(element.label, element.origin, frame)
            case ir.In():
                return frame.entering
            case ir.Nothing():
                return ABSENT
            case _:
                return None

    def branch_body(self, body: Sequence[ir.Statement], frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        """A body in braces; it may be the single word `nothing`."""
        flows = [s for s in body if isinstance(s, ir.Flow)]
        if len(flows) == 1:
            for statement in body:
                if not isinstance(statement, ir.Flow):
                    self.aside(statement, frame)
            return self.flow(flows[0], frame, names, x)
        return self.body(body, frame, names, x)

    def repeat(self, element: ir.Repeat, frame: Frame, names: Namespace, x: Flowing) -> Flowing:
        for i in range(self.rounds(element.count, frame)):
            self.step(element.origin)
            inner = frame.inner(x)
            if element.variable is not None:
                inner.define(element.variable, i)
            x = self.body(element.body, inner, names, x)
        return x

    def reference(self, label: str, origin: int, frame: Frame) -> Flowing:
        """The output of the element with a label, looked up from the innermost braces outwards."""
        here: Frame | None = frame
        known: list[str] = []
        while here is not None:
            if label in here.labels:
                return here.labels[label]
            if label in here.absent:
                self.fail(
                    "E0208",
                    f"`{label}` is not there: its condition is false",
                    origin,
                    help="put the same `when` behind this statement",
                )
                return None
            known += here.labels
            here = here.parent
        if self._labels is None:
            self._labels = labels_of(self.model)
        self.fail_label(label, origin, self._labels.get(label), known)
        return None

    def join(self, element: ir.Join, frame: Frame, names: Namespace, x: Flowing) -> Flowing | Absent:
        """Feeds every branch and joins the results; a join of one branch is that branch."""
        inner = frame.inner(x)
        branches: list[tuple[ir.Flow, Flowing]] = []
        self._joins += 1
        for statement in element.body:
            if isinstance(statement, ir.Flow):
                result = self.flow(statement, inner, names, x)
                if not isinstance(result, Absent):
                    branches.append((statement, result))
            else:
                self.aside(statement, inner)
        self._joins -= 1
        if not branches:
            self.fail(
                "E0216", f"every branch of `{element.join}` is absent", element.origin, help="leave at least one branch"
            )
            return None
        tensors = [tensor for _, tensor in branches]
        if len(tensors) == 1:
            return tensors[0]
        known = [tensor for tensor in tensors if tensor is not None]
        if len(known) < len(tensors):
            return None
        op = self.op(element.join, {})
        try:
            made = self.make(op, tuple(tensor.shape for tensor in known))
        except ShapeError as fault:
            self._conflicts.refuse_join(fault, element, [(flow, tensor) for flow, tensor in branches if tensor], inner)
            return None
        except TooLarge as fault:
            self.refuse_size(fault, element.origin)
        return self.add(names.path, op, tuple(tensor.node for tensor in known), made, element.origin)

    # --- calls -----------------------------------------------------------------------------------

    def call(
        self,
        call: ir.Call,
        frame: Frame,
        names: Namespace,
        x: Flowing,
        label: str | None = None,
        labelled: int | None = None,
    ) -> Flowing:
        """Runs a call, repeated or not; `labelled` is where its label stands."""
        if call.repeat is None:
            path = self.claim(names, self.name(call, frame, names, label, None), labelled or call.origin)
            return self.once(call, frame, path, x, 0)
        for i in range(self.rounds(call.repeat, frame)):
            self.step(call.origin)
            path = self.claim(names, self.name(call, frame, names, None, i), call.origin)
            x = self.once(call, frame, path, x, i)
        return x

    def once(self, call: ir.Call, frame: Frame, path: str, x: Flowing, index: int) -> Flowing:
        """One call of an operator or a block, at its path."""
        if frame.ops and (op := frame.ops.get(id(call))):
            return self.apply(op, call, path, x) if x else None
        callee = call.callee
        if call.variable:
            value = frame.values.get(callee)
            if not isinstance(value, OpName):
                if value is not None and not isinstance(value, Unknown):
                    self.fail(
                        "E0204",
                        f"`{callee}` is {show(value)}, not an operator",
                        call.origin,
                        help=f"give it the type `op`: `{callee}: op = relu`",
                    )
                return None
            callee = str(value)
        if callee in self.model.blocks and not call.variable:
            return self.enter(self.model.blocks[callee], call, frame, path, x, index)
        kind = OPS[callee]
        settings: dict[str, Any] = {}
        broken = False
        asked = self.asked
        for key, expr in call.args.items():
            value = self.value(expr, frame, kind.parameters[key].type, key)
            broken |= value is None
            settings[key] = value
        scheme = settings.get("init")
        if isinstance(scheme, InitScheme) and scheme.name not in (allowed := allowed_inits(callee)):
            help = f"there are {', '.join(f'`{name}`' for name in allowed)}"
            message = f"`{scheme.name}` cannot start the weights of `{callee}`"
            self.fail("E0215", message, call.args["init"].origin, help=help)
            return None
        missing = [name for name in kind.required if name not in settings]
        if missing:
            listed = ", ".join(f"`{name}`" for name in missing)
            self.fail(
                "E0203",
                f"the operator `{callee}` cannot be used here: it needs {listed}",
                call.origin,
                help="hand on an operator that needs no arguments, such as `relu`",
            )
        if x is None or broken or missing:
            return None
        op = self.op(callee, settings)
        if frame.ops is not None and self.asked == asked:
            frame.ops[id(call)] = op
        return self.apply(op, call, path, x)

    def op(self, name: str, settings: dict[str, Any]) -> Op:
        """An operator with its settings; equal ones are made once."""
        key = (name, *settings.items())
        op = self._ops.get(key)
        if op is None:
            op = self._ops[key] = (OPS.get(name) or JOINS[name])(**settings)
        return op

    def apply(self, op: Op, call: ir.Call, path: str, x: Tensor) -> Flowing:
        """Adds a node for an operator of one input."""
        try:
            made = self.make(op, (x.shape,))
        except ShapeError as fault:
            self._conflicts.refuse(fault, op, call, x, joined=self._joins > 0)
            return None
        except TooLarge as fault:
            self.refuse_size(fault, call.origin)
        return self.add(path, op, (x.node,), made, call.origin)

    def make(self, op: Op, inputs: tuple[Shape, ...]) -> Made:
        """What an operator makes of inputs of these shapes, worked out once.

        Raises:
            ShapeError: It does not take them.
            TooLarge: What it gives has more numbers than the limit.
        """
        known = self._made.get((id(op), inputs))
        if known is None:
            x, shape = inputs[0], op.infer(*inputs)
            if numel(shape) > MAX_HUGE:
                raise TooLarge(shape)
            weights = op.weights(x)
            known = Made(shape, weights, op.macs(x, shape), self.init_of(op) if weights else None)
            self._made[id(op), inputs] = known
        return known

    def init_of(self, op: Op) -> InitScheme | None:
        """How the weights of an operator start: by its own word, or by the `init` of its kind."""
        own = getattr(op, "init", None)
        if isinstance(own, str):
            return INITS[own]()
        return own if isinstance(own, InitScheme) else self._inits.get(op.name)

    def add(self, path: str, op: Op, inputs: tuple[int, ...], made: Made, origin: int) -> Tensor:
        """Adds a node, and gives its output."""
        self.nodes.append(ir.Node(path, op, inputs, *made, self._aux, self.places[origin]))
        return Tensor(len(self.nodes) - 1, made.shape)

    def enter(self, block: ir.Block, call: ir.Call, frame: Frame, path: str, x: Flowing, index: int) -> Flowing:
        """A call of a block: its parameters get their values, then its body runs."""
        self.scopes[path] = block.name
        inner = self.arguments(block, call, frame, x, index)
        if inner is None:
            return None
        values = (id(block), *[repr(inner.values[parameter.name]) for parameter in block.parameters])
        inner.ops = self._known.setdefault(values, {})
        key = values, self._aux
        if x and (known := self._recorder.again(key, path, x)) is not None:
            result, record = known
            self._steps += record.steps
            self.asked += record.asked
            self.step(call.origin)
            self.end(path, result)
            return result
        mark, steps, asked, faults = self._recorder.mark(), self._steps, self.asked, len(self.reporter.diagnostics)
        self.calls.append((call.origin, index))
        result = self.body(block.body, inner, Namespace(path), x)
        self.calls.pop()
        if x and result is not None and len(self.reporter.diagnostics) == faults:
            self._recorder.keep(key, mark, path, x, result, steps=self._steps - steps, asked=self.asked > asked)
        self.end(path, result)
        return result

    def end(self, path: str, result: Flowing | Absent) -> None:
        """Notes which node gives the output of a scope."""
        if isinstance(result, Tensor) and result.node != ir.IMAGE:
            self.ends[path] = result.node
