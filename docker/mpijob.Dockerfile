# An image of ringred's with sshd, for the pods of a Kubernetes MPIJob (examples/kubernetes/mpijob.yaml).
#
#   docker build -f docker/cpu.Dockerfile -t ringred .
#   docker build -f docker/mpijob.Dockerfile --build-arg IMAGE=ringred -t ringred:mpijob .
#
# An image of its own, so that the others have no sshd. Nothing listens unless the pod starts it, as user 1000, without
# any privilege. The operator makes a key for each job and mounts it into the pods: it is the only way in, and the key by
# which the client knows the servers.
ARG IMAGE=ringred
# hadolint ignore=DL3006
FROM ${IMAGE}

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends openssh-client openssh-server \
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
 && useradd --create-home --uid 1000 --password '*' mpiuser
COPY docker/ssh_config /etc/ssh/ssh_config
COPY docker/sshd_config /etc/ssh/sshd_config

USER 1000
ENTRYPOINT []
CMD ["/usr/sbin/sshd", "-De"]
