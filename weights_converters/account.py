"""Summary of how the tensors of each source were used, for the user."""

from collections import Counter
from collections.abc import Iterable, Mapping

from weights_converters.ldm_layout import OTHERS
from weights_converters.parts import Name, Part

NETWORKS: dict[Name, str] = {
    "unet": "the UNet",
    "vae": "the autoencoder",
    "text": "the text tower",
    "motion": "the motion modules",
    "control": "the sparse control network",
}


def account(parts: Mapping[Name, Part]) -> str:
    """Describe, for each source, how many tensors are used for which network, and which are left out and why."""
    sources: dict[str, list[Part]] = {}
    for part in parts.values():
        sources.setdefault(str(part.source.path), []).append(part)
    lines = []
    for path, group in sources.items():
        used = [f"{len(part.plan.report.renamed)} tensors for {NETWORKS[part.name]}" for part in group]
        lines += [f"from {path} ({group[0].finding}):", f"  used: {', '.join(used)}"]
        for reason, count in left_out(group).most_common():
            other = " (provided by another file)" if reason in OTHERS.values() else ""
            lines.append(f"  left out: {count} {'tensor' if count == 1 else 'tensors'}, {reason}{other}")
    return "\n".join(lines)


def left_out(parts: Iterable[Part]) -> Counter[str]:
    """Count the unused tensors of one source by reason; tensors without a rule are not counted."""
    parts = list(parts)
    used = {key for part in parts for key in part.plan.report.renamed}
    reasons: dict[str, str] = {}
    for part in parts:
        for key, why in part.plan.report.dropped.items():
            # the reason of the network that a tensor belongs to takes precedence
            if key not in used and reasons.get(key, why) in (why, *OTHERS.values()):
                reasons[key] = why if why not in OTHERS.values() else reasons.get(key, why)
    return Counter(reasons.values())
