"""The units of a run, in their order: the embedding, each block, the head, and what is saved of tuning end to end."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import multiply_rounded
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.run.stacks import StackOnItsWay
from elutq_cli.pipeline.run.tensors import Tensors, log_done
from elutq_cli.pipeline.stages.by_rows import look_up
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.correct import correct
from elutq_cli.pipeline.stages.divergence import Divergence, measure_divergence
from elutq_cli.pipeline.stages.linear import Matrix
from elutq_cli.pipeline.stages.measure import measure_block, sample_rows
from elutq_cli.pipeline.stages.moments import input_statistics, token_batches
from elutq_cli.pipeline.stages.streams import Pair, Streams, followed_tokens, run_block
from elutq_cli.pipeline.stages.tune.budget import keeps_activations
from elutq_cli.reference import Array, Block, block_tensor_names
from elutq_cli.reference.experts import Stack
from elutq_cli.reference.transformer import rms_norm
from elutq_formats.expert_names import split_expert
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_tensors import FINAL_NORM, HEAD
from elutq_formats.model_writer import TensorSource
from elutq_formats.names import called
from elutq_formats.tensor_record import STACK_DIMENSIONS

log = logging.getLogger(__name__)


class Run:
    """One checkpoint on its way into a spool.

    Attributes:
        tuned_tokens: what tuning end to end has learned from, once it has.
    """

    def __init__(
        self,
        source: CheckedWeights,
        plan: Plan,
        recipe: Recipe,
        backend: Backend,
        spool: Spool,
        progress: Progress,
        device: str,
        text: CalibrationText | None,
    ) -> None:
        self.tensors = Tensors(source, recipe, backend, spool, progress)
        self.config = source.config
        self.plan = plan
        self.recipe = recipe
        self.backend = backend
        self.spool = spool
        self.progress = progress
        self.device = device
        self.text = text
        self.tuned_tokens: int | None = None

    def add_all(self) -> tuple[Iterable[TensorSource], Divergence | None]:
        """Quantize every tensor that the spool does not hold, unit by unit.

        Returns:
            All of them in the file's order; and how far predictions are from the exact model's, where there is a text.
        """
        n_weights = sum(self.tensors.n_weights(entry.name) for entry in self.plan.matrices())
        self.progress.begin(n_weights, "weights")
        for record in self.spool.records:
            self.progress.advance(record.n_weights if record.bits != 32 else 0)
        units: list[Callable[[], list[FloatArray]]] = [
            self.add_embedding,
            *(partial(self.add_block, layer) for layer in range(self.config.num_hidden_layers)),
            self.add_head,
        ]
        if self.text is None:
            head = [] if self.plan.head is None else [self.plan.head]
            todo = [[self.plan.embedding], *self.plan.blocks, head][self.spool.n_finished :]
            self.tensors.begin_alone(plan for plans in todo for plan in plans if not self.is_stack(plan))
        for unit in units[self.spool.n_finished :]:
            self.spool.finish_unit(unit())
        sources: Iterable[TensorSource] = self.spool.sources()
        if self.text is None:
            return sources, None
        streams, state = self.open_streams()
        assert streams is not None
        if "e2e" in self.recipe.tune:
            sources, streams = self.tune_end_to_end(self.text, streams, state)
        self.progress.note("comparing predictions")
        head_input = self.head_input(self.tensors.load(FINAL_NORM))
        return sources, measure_divergence(
            streams, head_input, self.tensors.head_rows(), self.backend, self.config.logit_softcap
        )

    def open_streams(self) -> tuple[Streams | None, list[FloatArray]]:
        """Return the streams that the last unit left, None without a text, and what it left beside them."""
        arrays = self.spool.open_streams()
        if self.text is None:
            return None, arrays
        n_streams = 2 if self.text.held_out is None else 4
        return Streams(*arrays[:n_streams]), arrays[n_streams:]

    def add_embedding(self) -> list[FloatArray]:
        """Quantize the embedding; return what it makes of the calibration text: the arrays of ``Streams``."""
        text = self.text
        if text is None:
            self.tensors.add_alone(self.plan.embedding)
            return []
        followed = followed_tokens(text.tokens, text.held_out, self.recipe.keeps_exact)
        streams = [self.spool.make_room((*tokens.shape, self.config.hidden_size)) for tokens in followed]

        def look_up_rows(rows: slice, weights: FloatArray, restore: Callable[[], FloatArray]) -> None:
            values = restore(), weights
            for index, (stream, tokens) in enumerate(zip(streams, followed, strict=True)):
                look_up(stream, tokens, rows, values[index % 2])

        self.tensors.add_by_rows(self.plan.embedding, use=look_up_rows)
        return streams

    def add_block(self, layer: int) -> list[FloatArray]:
        """Quantize a block; return the residual streams after it."""
        streams, _ = self.open_streams()
        if streams is not None:
            self.add_calibrated_block(layer, self.plan.blocks[layer], streams)
        else:
            for plan in self.plan.blocks[layer]:
                if self.is_stack(plan):
                    self.add_stack(plan)
                else:
                    self.tensors.add_alone(plan)
        for name in self.config.vector_shapes(layer):
            self.tensors.add_vector(name)
        return [] if streams is None else streams.arrays()

    def is_stack(self, plan: MatrixPlan) -> bool:
        """Whether a matrix is several, one an expert."""
        return len(self.tensors.shape(plan.name)) == STACK_DIMENSIONS

    def add_stack(self, plan: MatrixPlan) -> None:
        """Quantize a stack of experts by their weights alone."""
        stack = self.open_stack(plan)
        for number in range(stack.shape[0]):
            weights = self.backend.arrays.place(self.tensors.load_expert(plan.name, number))
            stack.add(weights, None, sample_rows(weights))
        log_done(stack.finish())

    def open_stack(self, plan: MatrixPlan) -> StackOnItsWay:
        """Return a stack of the checkpoint, nothing of which is quantized yet."""
        return StackOnItsWay(plan, self.tensors, self.spool, self.backend)

    def weights_of(self, name: str) -> Array | Stack:
        """Return a tensor of the checkpoint, on the backend; a stack's matrices are read when they are needed."""
        shape = self.tensors.shape(name)
        if len(shape) < STACK_DIMENSIONS:
            return self.backend.arrays.place(self.tensors.load(name))
        return Stack(shape, lambda number: self.backend.arrays.place(self.tensors.load_expert(name, number)))

    def add_head(self) -> list[FloatArray]:
        """Quantize the output norm and the head, if there is one; return the residual streams before them."""
        norm, (streams, _) = self.tensors.add_vector(FINAL_NORM), self.open_streams()
        if self.plan.head is not None:
            inputs = None
            if streams is not None and self.plan.head.layout is not None:
                head_input, make_room = self.head_input(norm), self.spool.make_room
                batches = token_batches(streams.hidden)
                statistics = input_statistics([head_input], [batches], self.backend, make_room=make_room)
                inputs = self.tensors.prepare(called(HEAD), statistics)
                del statistics
            if streams is None:
                self.tensors.add_alone(self.plan.head)
            else:
                self.tensors.add_by_rows(self.plan.head, inputs)
        return [] if streams is None else streams.arrays()

    def head_input(self, norm: FloatArray) -> Callable[[Array], Array]:
        """Return the function from the last block's output to the head's input."""
        weight, epsilon = self.backend.arrays.place(norm), self.config.rms_norm_eps
        return partial(rms_norm, weight=weight, epsilon=epsilon, xp=self.backend.arrays.xp)

    def add_calibrated_block(self, layer: int, plans: tuple[MatrixPlan, ...], streams: Streams) -> None:
        """Quantize a block's linears one input at a time.

        Args:
            layer: the block.
            plans: of its linears.
            streams: its inputs, which become its outputs.
        """
        prefix = f"model.layers.{layer}."
        by_name = {plan.name: plan for plan in plans}
        weights = {name: self.weights_of(prefix + name) for name in block_tensor_names(self.config, layer)}
        block = Block(
            self.config, layer, weights, self.backend.arrays.xp, partial(multiply_rounded, backend=self.backend)
        )
        hidden, exact = streams.hidden, streams.exact if self.recipe.keeps_exact else None
        for stream in [streams.held_out_exact, streams.exact if exact is None else None]:
            if stream is not None:
                run_block(block, stream, self.backend, self.spool.make_room)  # before its weights change
        before = np.array(hidden) if "block" in self.recipe.tune else None
        matrices: dict[str, Matrix] = {}
        stacks: dict[str, StackOnItsWay] = {}
        for linears, statistics in block_statistics(block, hidden, exact, self.backend, self.spool.make_room):
            originals = {f"{prefix}{linear}.weight": block.weight(linear) for linear in linears}
            inputs = self.tensors.prepare(called(next(iter(originals))), statistics)
            targets = originals
            if self.recipe.corrects and statistics.lack is not None and inputs.factor is not None:
                lack, factor = statistics.lack, inputs.factor
                targets = {name: correct(weights, lack, factor, self.backend) for name, weights in originals.items()}
                del lack, factor
            del statistics, originals
            for name in list(targets):
                sample = sample_rows(block.weights.get(name.removeprefix(prefix), targets[name]))
                stack, target = split_expert(name), targets.pop(name)
                if stack is not None:
                    own = stacks.get(stack[0]) or stacks.setdefault(stack[0], self.open_stack(by_name[stack[0]]))
                    matrix = own.add(target, inputs, sample)
                else:
                    travels = target is block.weights.get(name.removeprefix(prefix))
                    matrix = self.tensors.quantize_matrix(by_name[name], target, inputs, sample, travels=travels)
                    if before is None:
                        self.tensors.add_matrix(matrix)
                    else:
                        matrices[name.removeprefix(prefix)] = matrix
                block.weights[name.removeprefix(prefix)] = self.backend.arrays.place(matrix.restore(self.backend.crew))
        for name, own in stacks.items():
            log_done(own.finish())
            block.weights[name.removeprefix(prefix)] = Stack(own.shape, own.restore_placed)
        if before is not None and exact is not None:
            matrices = self.tune_block(block, matrices, (before, exact), streams.held_out_pair)
            hidden[...] = before
            tensors = {name: of.contents for name, of in matrices.items() if isinstance(of.contents, HLQTensor)}
            errors = measure_block(block, hidden, tensors, self.tensors.load, self.backend, self.spool.make_room)
            for name, matrix in matrices.items():
                self.tensors.add_matrix(Matrix(replace(matrix.record, error=errors.get(name)), matrix.contents))
        if streams.held_out is not None:
            run_block(block, streams.held_out, self.backend, self.spool.make_room)

    def tune_block(
        self, block: Block, matrices: Mapping[str, Matrix], train: Pair, held_out: Pair | None
    ) -> dict[str, Matrix]:
        """Tune a block whose linears are quantized; its weights become those of the matrices that are returned."""
        from elutq_cli.pipeline.stages.tune.block import tune_block

        starts = {name: matrix.contents for name, matrix in matrices.items() if isinstance(matrix.contents, HLQTensor)}
        tuned = tune_block(block, starts, train, held_out, self.recipe.seed, self.device, self.progress.note)
        log.info("blk.%d: output error %.4f, %.4f before tuning", block.layer, tuned.after, tuned.before)
        found = dict(matrices)
        if tuned.after < tuned.before:
            for name, tensor in tuned.matrices.items():
                found[name] = Matrix(matrices[name].record, tensor)
                block.weights[name] = self.backend.arrays.place(found[name].restore(self.backend.crew))
        return found

    def tune_end_to_end(
        self, text: CalibrationText, streams: Streams, state: list[FloatArray]
    ) -> tuple[Iterable[TensorSource], Streams]:
        """Tune the levels of all blocks, each state that is saved a unit.

        Args:
            text: to learn from.
            streams: of it, after the last block.
            state: of a run that was stopped; none at the start.

        Returns:
            The file's tensors, and the streams with those of the tuned model.
        """
        from elutq_cli.pipeline.stages.tune.end_to_end import THOUSANDTHS, EndToEnd
        from elutq_cli.pipeline.stages.tune.fused_block import learning_products
        from elutq_cli.pipeline.stages.tune.learned_model import LearnedModel

        keep = keeps_activations(self.config, self.recipe.sequence_length)
        model = LearnedModel(self.config, self.spool.sources(), self.device, keep, learning_products(self.device))
        tuning = EndToEnd.of_text(model, self.tensors, text.tokens, text.held_out, text.fresh, self.recipe)
        if state:
            tuning.resume(state)
        self.progress.begin(THOUSANDTHS, "thousandths")
        self.progress.advance(tuning.thousandths)
        while not tuning.finished:
            tuning.run(self.progress)
            self.spool.finish_unit([*streams.arrays(), *tuning.state()])
        self.tuned_tokens = tuning.n_tokens
        if tuning.ended_by_time:
            log.warning(
                "tuning had %d tokens in its %g minutes, which another run may not: for the same file again give "
                "--tune-tokens instead",
                tuning.n_tokens,
                self.recipe.tune_minutes,
            )
        if not tuning.keep_best():
            return self.spool.sources(), streams
        tuned = self.spool.make_room(streams.hidden.shape)
        errors = model.measure(text.tokens, tuned, self.tensors.load, self.backend, self.spool.make_room)
        held_out = None if text.held_out is None else model.hidden(text.held_out)
        return model.replace_tuned(self.spool.sources(), errors), replace(streams, hidden=tuned, held_out=held_out)
