"""Outlines of masks along the edges of their pixels: exact, or with fewer points."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from masklet.masks.cleaning import Connectivity, label_components
from masklet.masks.patches import Patch
from masklet.masks.simplification import check_tolerance, simplify_rings


@dataclass(frozen=True, eq=False)
class Polygon:
    """The outline of one connected component of a mask, along the edges of its pixels or simplified.

    Points are (points, 2) float32, x then y, in pixels of the mask: the first pixel spans 0 to 1. The first point is
    not repeated at the end. With y down, the component is always on the right of the outline: the exterior runs
    clockwise on the screen, holes counterclockwise.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @property
    def rings(self) -> tuple[np.ndarray, ...]:
        """The exterior, then the holes."""
        return (self.exterior, *self.holes)


def mask_polygons(mask: np.ndarray, connectivity: Connectivity = 8, *, tolerance: float = 0.0) -> list[Polygon]:
    """The outlines of a mask; by default exact: filling them (even-odd, or by winding) gives the mask again.

    Args:
        mask: (height, width) bool.
        connectivity: 8: components connect through edges and corners; a ring touches itself where two pixels meet in
            a corner only. 4: components and holes connect through edges; no ring touches itself, which makes valid
            geometries for geographic software (OGC simple features).
        tolerance: In pixels. Points are left out as long as no point of an outline is farther than this from the
            simplified outline, and vice versa (Douglas and Peucker). No ring crosses or touches itself or another ring,
            holes stay inside, and even the smallest component or hole keeps three points. Where rings of the exact
            outline touch, they move apart by 1/32 of a pixel in x and y. Below 0.447 no point can be left out, and
            outlines are exact below 0.4.

    Returns:
        A polygon for each component, from top to bottom, with a point only where the outline turns.

    Raises:
        ValueError: ``mask`` is not one bool mask; ``tolerance`` is negative or not finite.
    """
    check_tolerance(tolerance)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"expected one bool mask (height, width), got {mask.dtype} of shape {mask.shape}")
    corners_xy, rings = trace_rings(mask, connectivity)
    components = label_components(np.pad(mask, 1), connectivity)
    exteriors: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for ring in rings:
        x, y = corners_xy[ring[0]]  # the topmost, then leftmost point of the ring; its first edge runs to the right
        points_xy = corners_xy[ring].astype(np.float32)
        if component := int(components[y + 1, x + 1]):  # the pixel below that edge; ``components`` is padded by one
            exteriors[component] = points_xy
        else:  # a hole is below, so the component is above
            holes.setdefault(int(components[y, x + 1]), []).append(points_xy[::-1])
    polygons = [Polygon(exterior, tuple(holes.get(component, ()))) for component, exterior in exteriors.items()]
    return simplify_polygons(polygons, tolerance) if tolerance else polygons


def simplify_polygons(polygons: list[Polygon], tolerance: float) -> list[Polygon]:
    """Leaves out points of the exact outlines of one mask, see ``mask_polygons``."""
    rings = iter(simplify_rings([ring for polygon in polygons for ring in polygon.rings], tolerance))
    return [Polygon(next(rings), tuple(islice(rings, len(polygon.holes)))) for polygon in polygons]


def patch_polygons(patch: Patch, connectivity: Connectivity = 8, *, tolerance: float = 0.0) -> list[Polygon]:
    """As ``mask_polygons``, in pixels of the image."""
    corner = np.array(patch.corner_xy, np.float32)
    return [
        Polygon(polygon.exterior + corner, tuple(hole + corner for hole in polygon.holes))
        for polygon in mask_polygons(patch.inside, connectivity, tolerance=tolerance)
    ]


def trace_rings(mask: np.ndarray, connectivity: Connectivity) -> tuple[np.ndarray, list[list[int]]]:
    """Traces all outlines of a mask.

    Returns:
        (corners, 2) int xy, the points where an outline turns; and each closed outline as a list of corners.
    """
    corners_xy, partner, has_crossings = link_corners(mask, connectivity)
    rings = walk_rings(partner)
    if connectivity == 4 and has_crossings:
        place_of = (corners_xy @ (1, mask.shape[1] + 1)).tolist()
        rings = sorted(loop for ring in rings for loop in split_ring(ring, place_of))
    return corners_xy, rings


def link_corners(mask: np.ndarray, connectivity: Connectivity) -> tuple[np.ndarray, list[int], bool]:
    """Finds the corners of all outlines and the edges between them.

    In a row of corners, from left to right, corners 2n and 2n + 1 are the ends of a horizontal edge, since inside and
    outside alternate. The same holds for columns. So sorting links all edges at once.

    Returns:
        (corners, 2) int xy by rows; for each corner the other end of its vertical edge; and whether pixels of the mask
        touch in a corner only.
    """
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    turns = above_left ^ above_right ^ below_left ^ below_right  # one pixel of the four, or all but one
    crossings = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    # A crossing, where two pixels touch in a point, has two corners: the first ends the edge from the left, the second
    # starts the edge to the right. With 8 neighbours, where the two pixels are one component, each corner goes around
    # a pixel of the background, with 4 around one of the mask. If that pixel is above on the right, the second corner
    # owns the edge from above and comes first in its column.
    places = np.flatnonzero(turns | crossings)
    place = places.repeat(1 + crossings.ravel()[places])
    y, x = np.divmod(place, turns.shape[1])
    crosses, falls = crossings[y, x], above_left[y, x]
    is_second = np.zeros(len(x), bool)
    is_second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    by_column = np.lexsort((is_second ^ (crosses & (falls if connectivity == 8 else ~falls)), y, x))
    partner = np.empty(len(x), np.intp)
    partner[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    return np.stack([x, y], axis=1), partner.tolist(), bool(crosses.any())


def walk_rings(partner: list[int]) -> list[list[int]]:
    """Closed outlines as lists of corners, from the other end of each corner's vertical edge.

    The other end of a horizontal edge is the number with its last bit flipped. This takes single steps, for which a
    list is faster than an array.
    """
    is_free = [True] * len(partner)
    rings = []
    for start in range(0, len(partner), 2):
        ring: list[int] = []
        corner = start
        while is_free[corner]:
            is_free[corner] = is_free[corner ^ 1] = False
            ring += (corner, corner ^ 1)
            corner = partner[corner ^ 1]
        if ring:
            rings.append(ring)
    return rings


def split_ring(ring: list[int], place_of: list[int]) -> Iterator[list[int]]:
    """Splits a ring that touches itself into simple rings, each of which starts at its top-left and runs right."""
    path: list[int] = []
    at: dict[int, int] = {}  # the position of each place on the path
    for corner in [*ring, ring[0]]:
        place = place_of[corner]
        if place in at:
            loop = path[at[place] :]
            del path[at[place] :]
            for visited in loop:
                del at[place_of[visited]]
            first = loop.index(min(loop))
            loop = loop[first:] + loop[:first]
            runs_right = place_of[loop[1]] < place_of[loop[-1]]  # the other neighbour is in a lower row
            yield loop if runs_right else [loop[0], *loop[:0:-1]]
        at[place] = len(path)
        path.append(corner)
