"""How many faces each detector was measured to find: what a report says beside blurred faces. See docs/faces.md."""

from collections.abc import Mapping

# `headrace faces evaluate` on nine photographs with 43 annotated faces, and YuNet's boxes on 79 Flickr photographs.
RECALL: Mapping[str, str] = {
    "haar": "40 of 43 frontal faces, but only 28 % of YuNet's boxes on Flickr photographs: many faces are NOT blurred",
    "yunet": "43 of 43 marked faces of group photographs; 32 of 137 boxes on ImageNet: animals or things",
    "centerface": "43 of 43 marked faces of group photographs; 19 of 129 boxes on ImageNet: animals or things",
}
