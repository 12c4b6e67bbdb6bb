"""NVIDIA NeMo Data Designer: an image column over an OpenAI-compatible route, resumed where its files allow it.

nemo.py MANIFEST BASE_URL FOLDER IN_FLIGHT
"""

import os
import sys

import pyarrow.parquet as pq
from data_designer.config import (
    DataDesignerConfigBuilder,
    DataFrameSeedSource,
    ImageColumnConfig,
    ImageInferenceParams,
    ModelConfig,
    ModelProvider,
)
from data_designer.interface import DataDesigner, ResumeMode

manifest, url, folder, in_flight = sys.argv[1:5]
os.environ["BENCH_KEY"] = "k"
provider = ModelProvider(name="gateway", endpoint=url, provider_type="openai", api_key="BENCH_KEY")
model = ModelConfig(
    alias="flux",
    model="gpt-image-flux",
    provider="gateway",
    skip_health_check=True,
    inference_parameters=ImageInferenceParams(max_parallel_requests=int(in_flight), timeout=60),
)
frame = pq.read_table(manifest).to_pandas()
builder = DataDesignerConfigBuilder(model_configs=[model])
builder.with_seed_dataset(DataFrameSeedSource(df=frame))
builder.add_column(ImageColumnConfig(name="image", prompt="{{ prompt }}", model_alias="flux"))
designer = DataDesigner(artifact_path=folder, model_providers=[provider])
designer.create(builder, num_records=len(frame), dataset_name="images", resume=ResumeMode.IF_POSSIBLE)
