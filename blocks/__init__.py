"""The Prefect blocks: saved configuration and secrets."""

from prefect_imagegen.blocks.gpu_worker_pool import GpuWorkerPool
from prefect_imagegen.blocks.image_store import ImageStore
from prefect_imagegen.blocks.segmind import Segmind

__all__ = ["GpuWorkerPool", "ImageStore", "Segmind"]
