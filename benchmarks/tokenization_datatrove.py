"""datatrove's tokenizer pipeline, for `benchmarks/tokenization.py`: INPUTS OUTPUT TOKENIZER WORKERS."""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    inputs, output, tokenizer, workers = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(inputs),
            DocumentTokenizer(output, tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
        tasks=int(workers),
        workers=int(workers),
        logging_dir=f"{output}/logs",
    ).run()
