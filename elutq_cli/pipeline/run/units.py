"""The units of a run, in their order: the embedding, each block, the head, and what is saved of tuning end to end."""

from collections.abc import Callable, Iterable
from functools import partial

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.recipe import MatrixPlan, Plan
from elutq_cli.pipeline.run.calibrated_block import CalibratedBlock
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.end_to_end import tune_end_to_end
from elutq_cli.pipeline.run.tensors import log_done
from elutq_cli.pipeline.run.workbench import Workbench
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.by_rows import look_up
from elutq_cli.pipeline.stages.divergence import Divergence, measure_divergence
from elutq_cli.pipeline.stages.linear import LinearInputs
from elutq_cli.pipeline.stages.measure import sample_rows
from elutq_cli.pipeline.stages.moments import head_statistics, input_of_head
from elutq_cli.pipeline.stages.streams import Streams, followed_tokens, spread
from elutq_cli.pipeline.stages.tied_head import tied_head_statistics
from elutq_formats.model_tensors import FINAL_NORM, HEAD
from elutq_formats.model_writer import TensorSource
from elutq_formats.names import called
from elutq_formats.tensor_record import STACK_DIMENSIONS


class Run:
    """One checkpoint on its way into a spool.

    Attributes:
        tuned_tokens: what tuning end to end has learned from, once it has.
    """

    def __init__(self, bench: Workbench, plan: Plan, text: CalibrationText | None) -> None:
        """Begin nothing yet.

        Args:
            bench: what there is to work with.
            plan: what becomes of each matrix.
            text: to calibrate on; None: matrices are quantized by their weights alone.
        """
        self.bench, self.plan, self.text = bench, plan, text
        self.tensors, self.spool, self.backend = bench.tensors, bench.spool, bench.backend
        self.config = bench.tensors.config
        self.tuned_tokens: int | None = None

    def add_all(self) -> tuple[Iterable[TensorSource], Divergence | None]:
        """Quantize every tensor that the spool does not hold, unit by unit.

        Returns:
            All of them in the file's order; and how far predictions are from the exact model's, where there is a text.
        """
        n_weights = sum(self.tensors.n_weights(entry.name) for entry in self.plan.matrices())
        self.bench.progress.begin(n_weights, "weights")
        for record in self.spool.records:
            self.bench.progress.advance(record.n_weights if record.bits != 32 else 0)
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
        if "e2e" in self.bench.recipe.tune:
            tuned = tune_end_to_end(self.bench, self.text, streams, state)
            sources, streams, self.tuned_tokens = tuned.sources, tuned.streams, tuned.n_tokens
        self.bench.progress.note("comparing predictions")
        head_input = input_of_head(self.config, self.tensors.load(FINAL_NORM), self.backend)
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
        followed = followed_tokens(text.tokens, text.held_out, self.bench.recipe.keeps_exact)
        streams = [self.spool.make_room((*tokens.shape, self.config.hidden_size)) for tokens in followed]

        def look_up_rows(rows: slice, weights: FloatArray, restore: Callable[[], FloatArray]) -> None:
            values = restore(), weights
            for index, (stream, tokens) in enumerate(zip(streams, followed, strict=True)):
                look_up(stream, tokens, rows, values[index % 2])

        self.tensors.add_by_rows(self.plan.embedding, self.tied_head_inputs(text), use=look_up_rows)
        return streams

    def tied_head_inputs(self, text: CalibrationText) -> LinearInputs | None:
        """Return what is known of the head's input where the embedding is the head, too, None elsewhere."""
        if not self.plan.head_is_embedding:
            return None
        hidden = self.tensors.embed(text.tokens[spread(len(text.tokens), SEQUENCES)])
        model, note = self.tensors.exact_model(), self.bench.progress.note
        statistics = tied_head_statistics(model, hidden, self.backend, self.spool.make_room, note)
        return self.tensors.prepare(called(HEAD), statistics)

    def add_block(self, layer: int) -> list[FloatArray]:
        """Quantize a block; return the residual streams after it."""
        streams, _ = self.open_streams()
        if streams is not None:
            CalibratedBlock(self.bench, layer, self.plan.blocks[layer], streams).quantize()
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
        stack, place = self.bench.open_stack(plan), self.backend.arrays.place
        weights = (place(self.tensors.load_expert(plan.name, number)) for number in range(stack.shape[0]))
        experts = (stack.to_quantize(of_one, sample_rows(of_one)) for of_one in weights)
        for matrix in self.tensors.quantize_sharing(experts, None):
            stack.add(matrix)
        log_done(stack.finish())

    def add_head(self) -> list[FloatArray]:
        """Quantize the output norm and the head, if there is one; return the residual streams before them."""
        norm, (streams, _) = self.tensors.add_vector(FINAL_NORM), self.open_streams()
        if self.plan.head is not None:
            inputs = None
            if streams is not None and self.plan.head.layout is not None:
                statistics = head_statistics(self.config, norm, streams.hidden, self.backend, self.spool.make_room)
                inputs = self.tensors.prepare(called(HEAD), statistics)
                del statistics
            if streams is None:
                self.tensors.add_alone(self.plan.head)
            else:
                self.tensors.add_by_rows(self.plan.head, inputs)
        return [] if streams is None else streams.arrays()
