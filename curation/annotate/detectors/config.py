"""What a recipe says about one face detector."""

from dataclasses import dataclass
from typing import Any, Literal

from headrace.curation.annotate.detectors.haar import cascade_file
from headrace.curation.models.folder import model_url

DetectorName = Literal["centerface", "yunet", "scrfd", "haar"]
# From this score on boxes are kept. Measured on photographs with 43 known faces: docs/faces.md.
MIN_SCORES = {"centerface": 0.35, "yunet": 0.6, "scrfd": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """One face detector."""

    detector: DetectorName = "centerface"
    """`centerface`, `yunet` or `scrfd`, each with its file; `haar` comes with OpenCV and misses most faces."""
    model: str = ""
    """ONNX file (any fsspec URL) or a name of `headrace models list`; empty: `centerface` is the known one."""
    min_score: float | None = None
    """Keep boxes from this score on; null: 0.35 of CenterFace, 0.6 of YuNet, 0.5 of SCRFD."""
    nms_overlap: float = 0.3
    """Of two boxes that overlap more (intersection over union), keep the better."""
    run_by: Literal["onnxruntime", "opencv"] = "onnxruntime"
    """What runs `centerface`: onnxruntime (the extra `onnx`), or OpenCV, which is always there and slower."""

    def __post_init__(self) -> None:
        check_detector(self)

    @property
    def lowest_score(self) -> float:
        """The score from which on boxes are kept."""
        return MIN_SCORES[self.detector] if self.min_score is None else self.min_score


def check_detector(config: "DetectorConfig") -> None:
    """Raise ValueError for settings that do not fit together."""
    if config.detector in ("yunet", "scrfd") and not config.model:
        raise ValueError(
            f"detector {config.detector} needs `model`, the path of its ONNX file or a name of `headrace models list`; "
            "or say detector: centerface"
        )
    if config.detector == "haar" and config.model:
        raise ValueError("detector haar takes no `model`; say which detector the file is of: centerface, yunet, scrfd")
    if config.detector == "haar" and config.min_score is not None:
        raise ValueError("detector haar gives no scores: leave min_score out")
    if not 0 < config.nms_overlap < 1 or not (config.min_score is None or 0 < config.min_score < 1):
        raise ValueError("min_score and nms_overlap must be between 0 and 1")


def settings_of(config: DetectorConfig) -> dict[str, Any]:
    """Return what changes the boxes of a detector, besides its file."""
    if config.detector == "haar":
        return {"detector": "haar"}
    found = {"detector": config.detector, "min_score": config.lowest_score, "nms_overlap": config.nms_overlap}
    return {**found, "run_by": "opencv"} if config.run_by == "opencv" and needs_runtime(config.detector) else found


def needs_runtime(detector: DetectorName) -> bool:
    """True if onnxruntime runs it, unless OpenCV is asked to: YuNet and Haar are OpenCV's own."""
    return detector not in ("yunet", "haar")


def packages_of(config: DetectorConfig) -> tuple[str, ...]:
    """Return the packages beside the core that a detector imports."""
    return ("onnxruntime",) if needs_runtime(config.detector) and config.run_by == "onnxruntime" else ()


def file_of(config: DetectorConfig) -> str:
    """Return the file of a detector. Raises ValueError if a known one is not on this machine."""
    return str(cascade_file()) if config.detector == "haar" else model_url(config.model or config.detector)
