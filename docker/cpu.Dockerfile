# ringred on CPUs, with Open MPI from PyPI.
#
#   docker build -f docker/cpu.Dockerfile -t ringred .
#   docker run --rm ringred run -np 4 examples/digits.py
#
# Neither --shm-size nor --ipc is needed: ringred's segments are memfds, not files in /dev/shm.
# For the CPU wheel of torch (200 MB instead of several GB) pass --build-arg PIP_EXTRA_INDEX_URL=<index of CPU wheels>.
FROM python:3.12-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /ringred
COPY constraints.txt requirements/run.txt ./
RUN pip install -c constraints.txt -r run.txt
COPY . .
RUN pip install . && rm -rf build

ENTRYPOINT ["ringred"]
CMD ["run", "-np", "4", "examples/digits.py"]
