"""The tables that say which cases err most."""

import torch

from anyi2v.micro.benchmark.cases import make_case
from benchmarks.failures import by_share, leaving_table, resize_table, style_table, three_table


def test_objects_that_leave_are_told_apart_by_what_is_seen_of_them() -> None:
    case = make_case(1000, "edge", "leaving")
    distances = by_share([(case, case.truth)])
    assert len(distances["whole"]) >= 1 and len(distances["half or more"]) + len(distances["less than half"]) >= 1
    assert sum(map(len, distances.values())) == case.targets[0].centres.isfinite().all(-1).sum()
    # palette colours end within half a pixel of the mask, see tests/test_input_cases.py
    assert torch.cat(list(distances.values())).max() < 1
    still = by_share([(case, case.truth[:1].expand_as(case.truth))])
    assert still["less than half"].mean() > 8 > 1 > still["whole"][0]
    gone = by_share([(case, torch.zeros_like(case.truth))])
    assert all(values.isnan().all() for values in gone.values())
    assert leaving_table({"whole": torch.tensor([torch.nan, 10.0])}, 64).endswith(
        "| whole | 2 | 21.00 | 50% of the frames |"
    )


def test_growing_and_shrinking_objects_are_told_apart() -> None:
    rows = []
    for seed in range(1000, 1008):
        radii = make_case(seed, "edge", "resize").scene.sprites[0].radii
        error = 1.0 if radii[-1] > radii[0] else 2.0
        rows.append({"seed": seed, "modality": "edge", "trajectory_error": error, "area_error": error})
    grows, shrinks = (line.split(" | ") for line in resize_table(rows).splitlines()[2:])
    assert int(grows[1]) + int(shrinks[1]) == len(rows)
    assert grows[2].startswith("1.00") and shrinks[2].startswith("2.00")


def test_lost_objects_and_styles_have_their_rows() -> None:
    errors = (1.0, 3.0, 20.0)
    rows = [{"trajectory_error": e, "modality": "depth", "first_frame_iou": 0.5} for e in errors]
    everything, near = three_table(rows).splitlines()[2:]
    assert everything.startswith("| all | 3 | 8.00") and near.startswith("| within 8 px | 2 | 2.00")
    assert style_table({"mesh": rows}).splitlines()[2].startswith("| mesh, depth | 3 | 8.00")
