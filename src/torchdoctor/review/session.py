"""A review: its questions, its answers, and what the page needs to show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchdoctor.case.preparation import Case
from torchdoctor.review.cut_out import cut_out
from torchdoctor.review.label_store import LabelStore, counted
from torchdoctor.review.mask_runs import mask_of_runs, runs_of
from torchdoctor.review.mask_store import MaskStore
from torchdoctor.review.precision import Precision, measured_precision
from torchdoctor.review.queue import Queue
from torchdoctor.review.viewer import Viewer
from torchdoctor.runs.review_files import MaskKind
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.types import InputError, Progress

Json = dict[str, Any]


class Session:
    """What the server and the command line do with a review.

    Attributes:
        queue: The questions.
        labels: The answers about labels.
        masks: The masks of a person.
        proposals: The masks that nobody has looked at, or accepted.
        viewer: Looks at images.
    """

    def __init__(self, run: Path, case: Case, queue: Queue) -> None:
        """Open the answers of a run.

        Args:
            run: The run's folder, locked by this process.
            case: The prepared case.
            queue: The questions.

        Raises:
            InputError: The answers are damaged or about other images.
        """
        table = case.data.train.table
        self.case, self.queue, self.viewer = case, queue, Viewer(case)
        self.labels = LabelStore(run, queue.labels, case.classes)
        self.masks = MaskStore(run, table)
        self.proposals = MaskStore(run, table, "proposals")
        self._asked = {one.id for one in queue.masks}

    def state(self) -> Json:
        """Return everything that the page begins with.

        Returns:
            Questions, answers and sentences, as JSON holds them.

        Raises:
            InputError: The list of labels is damaged.
        """
        answers = self.labels.answers()
        return {
            "title": f"{self.case.plan.model} on {self.case.plan.data}",
            "classes": list(self.case.classes),
            "labels": [
                {
                    "id": one.id, "name": one.name, "given": one.given, "proposed": one.proposed,
                    "probability": one.probability, "likeGiven": list(one.like_given),
                    "likeProposed": list(one.like_proposed), "answer": answers.get(one.id, ""),
                }
                for one in self.queue.labels
            ],
            "masks": [
                {
                    "id": one.id, "name": one.name, "category": one.category, "reason": one.reason,
                    **self._mask_state(one.id),
                }
                for one in self.queue.masks
            ],
            "labelWorth": self.queue.label_worth,
            "maskWorth": self.queue.mask_worth,
            "leastMasks": LEAST_MASKS,
            "masksBefore": self._masked_before(),
            "precision": list(self.precision().sentences),
        }  # fmt: skip

    def _masked_before(self) -> int:
        """Count the training images that have masks without the review."""
        table = self.case.data.train.table
        return len({*table.ids[table.has_mask].tolist()} - {*self.masks.records})

    def _mask_state(self, image: int) -> Json:
        """Return what is known of the mask of an image."""
        record = self.masks.records.get(image)
        return {"kind": record.kind if record else "", "content": record.content if record else ""}

    def precision(self) -> Precision:
        """Return how well the list of labels has done so far.

        Returns:
            The precision.
        """
        chances = [one.probability for one in self.queue.labels]
        return measured_precision(chances, counted(self.labels.answers(), self.queue.labels))

    def answer_label(self, image: int, body: Mapping[str, Any]) -> Json:
        """Keep an answer about a label.

        Args:
            image: The id of the image.
            body: `answer`: the number of a category, `keep`, `unusable`, or nothing to take it back.

        Returns:
            The answer as it stands on the disk, and what the precision says.

        Raises:
            InputError: The answer is none.
            ModelDoctorError: It cannot be written.
        """
        answer = body.get("answer")
        if not isinstance(answer, int | str) or isinstance(answer, bool):
            raise InputError(f"answer {answer!r}: expected a number or a word")
        self.labels.write(image, answer)
        return {"answer": self.labels.answers()[image], "precision": list(self.precision().sentences)}

    def mask(self, image: int) -> Json:
        """Return the mask of an image and the size of the image.

        Args:
            image: The id of an image that is asked about.

        Returns:
            `width`, `height`, `runs` (None without a mask), `kind` and `content`.

        Raises:
            InputError: The image is not asked about, or is gone.
        """
        self._check_asked(image)
        width, height = self.viewer.image(image).size
        mask = self.masks.read(image)
        runs = None if mask is None else runs_of(mask)
        return {"width": width, "height": height, "runs": runs, **self._mask_state(image)}

    def proposal(self, image: int) -> Json:
        """Return a proposed mask.

        Args:
            image: The id of an image that is asked about.

        Returns:
            `runs`; the mask that was stored as a proposal, else one that is made now.

        Raises:
            InputError: The image is not asked about, or is gone.
        """
        self._check_asked(image)
        return {"runs": runs_of(self._proposed(image))}

    def cut_out(self, image: int, body: Mapping[str, Any]) -> Json:
        """Propose a mask of the object in a box, and store it as the proposal of the image.

        Args:
            image: The id of an image that is asked about.
            body: `box`: left, top, right and bottom in pixels of the image.

        Returns:
            `runs` of the mask. It counts as a person's only when it comes back by `answer_mask`.

        Raises:
            InputError: The image is not asked about, or is gone, or the box is none.
            ModelDoctorError: The proposal cannot be stored.
        """
        self._check_asked(image)
        box = body.get("box")
        if not isinstance(box, list):
            raise InputError(f"box {box!r}: expected left, top, right and bottom in pixels, as a list")
        pixels = np.asarray(self.viewer.image(image), np.float32).transpose(2, 0, 1) / 255
        mask = cut_out(pixels, box)
        self.proposals.write(image, mask, "proposal")
        return {"runs": runs_of(mask)}

    def _proposed(self, image: int) -> np.ndarray:
        """Return the stored proposal, else make one."""
        stored = self.proposals.read(image)
        return self.viewer.proposal(image) if stored is None else stored

    def answer_mask(self, image: int, body: Mapping[str, Any]) -> Json:
        """Keep a mask of a person.

        Args:
            image: The id of an image that is asked about.
            body: `runs` with `proposed` (whether the person began with the proposal); or `noObject`; or
                `remove`, to take the answer back.

        Returns:
            What stands on the disk: `kind` and `content`, and `file` where there is one.

        Raises:
            InputError: The mask does not fit the image, or marks nothing.
            ModelDoctorError: It cannot be written.
        """
        self._check_asked(image)
        if body.get("remove") is True:
            self.masks.remove(image)
            return self._mask_state(image)
        width, height = self.viewer.image(image).size
        if body.get("noObject") is True:
            record = self.masks.write(image, np.zeros((height, width), bool), "by hand", no_object=True)
        else:
            runs = body.get("runs")
            if not isinstance(runs, list):
                raise InputError("a mask came without its runs: load the page again")
            mask = mask_of_runs(runs, width, height)
            proposed = body.get("proposed") is True
            same = proposed and bool(np.array_equal(mask, self._proposed(image)))
            kind: MaskKind = "accepted proposal" if same else "corrected proposal" if proposed else "by hand"
            record = self.masks.write(image, mask, kind)
        return {**self._mask_state(image), "file": record.file}

    def propose(self, progress: Progress) -> int:
        """Store a proposal for every image in the queue that has neither mask nor proposal.

        Args:
            progress: Called with ("proposals", done, of how many).

        Returns:
            The number of proposals that were stored; there is none where the network looks nowhere, or
            everywhere.

        Raises:
            ModelDoctorError: One cannot be written.
        """
        open_ones = [
            one.id
            for one in self.queue.masks
            if one.id not in self.masks.records and self.proposals.read(one.id) is None
        ]
        stored = 0
        for number, image in enumerate(open_ones):
            progress("proposals", number, len(open_ones))
            mask = self.viewer.proposal(image)
            if mask.any() and not mask.all():
                self.proposals.write(image, mask, "proposal")
                stored += 1
        progress("proposals", len(open_ones), len(open_ones))
        return stored

    def _check_asked(self, image: int) -> None:
        """Refuse an image that no question about masks is about."""
        if image not in self._asked:
            raise InputError(f"image {image} is not among those whose masks are asked for")
