"""SGR: regions of the student's image shall relate to one another as in the teacher's.

Regions are the masks; a region's embedding is the mean of a frozen analyzer's features over it,
and relations are cosines between embeddings. The paper's abstract (Zhang et al., CVPR 2024) gives
no equations; the form here is our choice, modelled on graph-relation distillation.

Letters: B images, N nodes (regions) of each, C channels, h x w cells of a feature map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samprior.storage.errors import UsageError
from samprior.training.priors.analyzers import SemanticAnalyzer
from samprior.training.priors.regions import RegionBatch

_EPS = 1e-6
"""Below this norm an embedding counts as zero, and its cosines with all others as 0."""


@dataclass(frozen=True, eq=False)
class RegionNodes:
    """The regions of each image at the resolution of one feature map.

    Node 0 is what no mask covers; nodes 1 to N-1 are the largest masks by falling area.
    """

    weights: Tensor
    """float (B, N, h * w): share of each cell that the region takes up; zero if not valid."""

    valid: Tensor
    """bool (B, N): whether the region exists and has at least the area of one cell."""

    def pool(self, features: Tensor) -> Tensor:
        """Mean of (B, C, h, w) over each region: (B, N, C); zero where not valid."""
        cells = features.flatten(2).transpose(1, 2)
        weights = self.weights.to(cells.dtype)
        return torch.bmm(weights, cells) / weights.sum(2, keepdim=True).clamp(min=1)


def region_nodes(regions: RegionBatch, *, stride: int, max_regions: int = 32) -> RegionNodes:
    """Resize the masks by area to cells of stride x stride pixels, the `max_regions` largest.

    Masks (and the uncovered rest) that come to less than one cell in all are dropped.

    Raises:
        UsageError: a side of the crops is no multiple of the stride.
    """
    counts = regions.cell_counts(stride)
    uncovered = regions.atom_depth[:, None] == 0
    node_of_atom = torch.cat([uncovered, regions.in_largest(max_regions)], dim=1).float()
    areas = torch.cat(
        [regions.atom_areas[regions.first_atom][:, None], regions.largest_areas(max_regions)], 1
    )
    valid = areas >= stride * stride
    batch, height, width = regions.atoms.shape
    num_cells = (height // stride) * (width // stride)
    shares = node_of_atom.index_select(0, counts.atom) * (counts.count / stride**2)[:, None]
    by_cell = shares.new_zeros(batch * num_cells, shares.shape[1])
    by_cell = by_cell.index_add(0, counts.cell, shares)
    weights = by_cell.reshape(batch, num_cells, -1).transpose(1, 2)
    return RegionNodes(weights * valid[:, :, None], valid)


def relation_distance(
    student: Tensor, teacher: Tensor, valid: Tensor, *, eta: float = 0.1
) -> Tensor:
    """Distance (B,) between the relations of two sets of region embeddings (B, N, C).

    With K valid nodes of an image, unit embeddings u and v (student, teacher):
    (1/K²) Σ_jk (u_j·u_k - v_j·v_k)² + η (1/K) Σ_k (1 - u_k·v_k). Images with K < 2 give 0, with a
    zero gradient. Nothing is detached here.
    """
    kept = valid[:, :, None]
    u = F.normalize(student, dim=2, eps=_EPS) * kept
    v = F.normalize(teacher, dim=2, eps=_EPS) * kept
    num_nodes = valid.sum(1)
    relations = torch.bmm(u, u.transpose(1, 2)) - torch.bmm(v, v.transpose(1, 2))
    # For unit vectors 1 - u·v is |u - v|²/2, which is exactly 0 for equal ones.
    nodes = 0.5 * (u - v).square().sum(dim=(1, 2))
    count = num_nodes.clamp(min=1)
    distance = relations.square().sum(dim=(1, 2)) / count**2 + eta * nodes / count
    return distance * (num_nodes >= 2)


class RelationLoss(nn.Module):
    """SGR loss of a student's images against a teacher's, guided by the masks.

    Sum over the analyzer's feature maps, mean over the images. Zero where both images are equal;
    doesn't depend on the order of the masks (but for ties in area at the limit `max_regions`).

    Args:
        analyzer: see `SemanticAnalyzer`; `build_analyzer` makes one.
        eta: weight of the embeddings themselves beside their relations; 0 = relations alone.
        max_regions: masks used of each image, the largest; the uncovered rest is one more.

    Raises:
        UsageError: a negative eta or less than one region.
    """

    def __init__(
        self, analyzer: SemanticAnalyzer, *, eta: float = 0.1, max_regions: int = 32
    ) -> None:
        super().__init__()
        if eta < 0 or max_regions < 1:
            raise UsageError(
                f"eta must be at least 0 and max_regions at least 1, got {eta} and {max_regions}"
            )
        self.analyzer = analyzer
        self.eta = eta
        self.max_regions = max_regions

    def forward(self, student: Tensor, teacher: Tensor, regions: RegionBatch) -> Tensor:
        """Scalar loss of two (B, 3, H, W) in [0, 1]; the teacher's side gets no gradient.

        Raises:
            UsageError: masks of another size than the images, or sides that are no multiples of
                the analyzer's strides.
        """
        regions.check_image(student)
        regions.check_image(teacher)
        nodes = {
            stride: region_nodes(regions, stride=stride, max_regions=self.max_regions)
            for stride in self.analyzer.strides
        }
        with torch.no_grad():
            teacher_maps = self.analyzer(teacher)
        student_maps = self.analyzer(student)
        loss = student.new_zeros(())
        # Autocast would take the products in half precision, where near-equal cosines cancel.
        with torch.autocast(student.device.type, enabled=False):
            for stride, ours, theirs in zip(
                self.analyzer.strides, student_maps, teacher_maps, strict=True
            ):
                u, v = (nodes[stride].pool(_at_least_single(maps)) for maps in (ours, theirs))
                loss = loss + relation_distance(u, v, nodes[stride].valid, eta=self.eta).mean()
        return loss


def _at_least_single(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
