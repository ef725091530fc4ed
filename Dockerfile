# docker build --target cpu -t passl_densecl:cpu .
# docker build --target gpu -t passl_densecl:gpu .     compute capability 6.1 to 8.9; newer cards need Paddle 3.x, see docs/install.md
# Checked with hadolint; not built by the developers, who could reach no registry.

FROM python:3.12-slim-bookworm AS cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir "/src[cpu,demo,lmdb]"
WORKDIR /app
ENTRYPOINT ["densecl"]
CMD ["--help"]

# The devel image has the libraries by the names without a version that paddlepaddle-gpu 2.6.2 opens, NCCL among them.
FROM nvidia/cuda:11.8.0-cudnn8-devel-ubuntu22.04 AS gpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 python3 python3-pip && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m pip install --no-cache-dir "/src[gpu,demo,lmdb]"
WORKDIR /app
ENTRYPOINT ["densecl"]
CMD ["--help"]
