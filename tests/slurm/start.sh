#!/usr/bin/env bash
# Start SLURM on this machine alone, in a folder of its own, to try --slurm without a cluster, or stop it:
#
#   export SLURM_CONF=$(tests/slurm/start.sh /tmp/slurm)
#   sinfo; vgsplus reproduce smoke --out out/smoke --slurm time=5
#   tests/slurm/start.sh --stop /tmp/slurm
#
# Needs the Debian packages slurm-wlm and munge, but neither systemd nor cgroups, so that it runs in a container. The
# daemons belong to the user who starts them, and listen on this machine alone, on ports that are free.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

if [ "${1-}" = --stop ]; then
	SLURM_CONF=$2/slurm.conf timeout 10 scancel --me || true
	for daemon in slurmd slurmctld munged; do
		if [ -s "$2/$daemon.pid" ]; then kill "$(cat "$2/$daemon.pid")" || true; fi
	done
	exit
fi

for program in munged slurmctld slurmd sbatch; do
	if ! command -v $program >/dev/null; then
		echo "$program is missing: apt-get install slurm-wlm munge" >&2
		exit 1
	fi
done
mkdir -p "$1"
folder=$(cd "$1" && pwd)
mkdir -p "$folder"/{state,spool}
chmod 700 "$folder"

if [ ! -s "$folder/munge.key" ]; then
	(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
fi
# --force: the folder may be below /tmp, which everybody may write to.
munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
	--log-file "$folder/munged.log" --seed-file "$folder/munge.seed" 2>>"$folder/start.log"

read -r controller_port node_port < <(python3 -c '
import socket
with socket.socket() as one, socket.socket() as two:
    one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
    print(one.getsockname()[1], two.getsockname()[1])')
user=$(id -un)
cat >"$folder/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=$user
SlurmdUser=$user
# A job that is requeued starts when the credential of its last start has expired: after 120 s by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 $(slurmd -C | grep -o " CPUs=.*") State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
export SLURM_CONF=$folder/slurm.conf
slurmctld -c 2>>"$folder/start.log"
slurmd -N localhost 2>>"$folder/start.log"
for _ in {1..60}; do
	if [ "$(timeout 5 sinfo --noheader --format %t 2>/dev/null)" = idle ]; then
		echo "$SLURM_CONF"
		exit
	fi
	sleep 0.5
done
echo "SLURM does not answer; see the logs in $folder" >&2
exit 1
