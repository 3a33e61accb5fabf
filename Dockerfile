# samprior in a container. For CPUs:  docker build -t samprior .
# For NVIDIA GPUs:                    docker build -t samprior:cuda --build-arg TORCH=cu130 .
#
# docker run --rm samprior doctor
# docker run --rm --gpus all --shm-size 2g --user "$(id -u):$(id -g)" \
#     -v "$PWD:/work" -v samprior-cache:/cache samprior:cuda \
#     precompute --dataset gopro --root GOPRO_Large --split train --out stores/gopro
#
# Drivers come from the host (nvidia-container-toolkit), the CUDA libraries with torch's wheels, so
# both kinds stand on the same small image.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist

FROM python:${PYTHON}-slim
# Index of torch's wheels: cpu, or a CUDA release such as cu130.
ARG TORCH=cpu
# Libraries that samprior takes beside its own: remote, lpips, export, tensorboard, ray-train.
ARG EXTRAS=remote,tensorboard
COPY --from=build /dist /dist
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" \
        "torch>=2.11" "torchvision>=0.26" \
    && pip install --no-cache-dir "$(echo /dist/*.whl)${EXTRAS:+[${EXTRAS}]}" \
    && rm -r /dist
# A user without rights, or the one that --user names, who then owns what is written to /work.
# Checkpoints and machine code are kept in a volume.
RUN useradd --create-home samprior && mkdir /work /cache && chmod 1777 /work /cache
USER samprior
ENV SAMPRIOR_CACHE=/cache TORCH_HOME=/cache/torch NUMBA_CACHE_DIR=/cache/numba \
    RAY_USAGE_STATS_ENABLED=0 HOME=/cache USER=samprior
WORKDIR /work
ENTRYPOINT ["samprior"]
CMD ["--help"]
