"""The encoders of contrastive objectives, under the names that timm and torchvision give to their parameters."""
