#!/usr/bin/env bats
# roomwire-tuning on a tree of our own: check, apply, persist, rollback, and what may go wrong in between.

setup() {
  tuning=$BATS_TEST_DIRNAME/roomwire-tuning
  root=$BATS_TEST_TMPDIR/root
  mkdir -p "$root"/proc/sys/{fs,net/core,net/ipv4,kernel} "$root"/sys/kernel/mm/transparent_hugepage "$root"/etc "$root"/var/lib
  printf 'MemTotal:       16000000 kB\n' >"$root/proc/meminfo"
  printf 'processor\t: 0\nprocessor\t: 1\nprocessor\t: 2\nprocessor\t: 3\n' >"$root/proc/cpuinfo"
  printf 'roomwire:x:990:\n' >"$root/etc/group"
  sysctl fs/nr_open 1048576; sysctl fs/file-max 9223372036854775807; sysctl net/core/somaxconn 4096
  sysctl net/ipv4/tcp_rmem $'4096\t131072\t6291456'; sysctl net/ipv4/tcp_slow_start_after_idle 1
  sysctl net/ipv4/tcp_mem $'1000\t2000\t3000'; sysctl kernel/io_uring_disabled 2; sysctl kernel/io_uring_group -1
  printf '[always] madvise never\n' >"$root/sys/kernel/mm/transparent_hugepage/enabled"
}

sysctl() { printf '%s\n' "$2" >"$root/proc/sys/$1"; }
now() { cat "$root/proc/sys/$1"; }
tune() { "$tuning" "$@" --root "$root"; }
tree() { (cd "$root" && find . -type f -not -path './var/*' -exec md5sum {} + | sort -k2); }

@test "check changes nothing, names what is off and what it limits, and exits 1" {
  before=$(tree)
  run tune check
  [ "$status" -eq 1 ]
  [[ $output == *"OFF     net.core.somaxconn = 4096, wanted 65535"* ]]
  [[ $output == *"limits connections"* ]]
  [[ $output == *"absent  net.ipv4.tcp_migrate_req"* ]]
  [ "$(tree)" = "$before" ]
}

@test "apply sets, check is then content, and a second apply changes nothing" {
  run tune apply
  [ "$status" -eq 0 ]
  [ "$(now net/core/somaxconn)" = 65535 ]
  [ "$(now net/ipv4/tcp_mem)" = "400000 600000 1000000" ]
  [ "$(cat "$root/sys/kernel/mm/transparent_hugepage/enabled")" = madvise ]
  run tune check
  [ "$status" -eq 0 ]
  run tune apply
  [[ $output == *"0 changed, 0 refused"* ]]
}

@test "a higher value is left alone, number by number, unless --exact is given" {
  tune apply
  [ "$(now fs/file-max)" = 9223372036854775807 ]
  [ "$(now net/ipv4/tcp_rmem)" = $'4096\t131072\t6291456' ]
  tune apply --exact
  [ "$(now net/ipv4/tcp_rmem)" = "4096 16384 1048576" ]
}

@test "rollback puts every value back as it was before the first of several applies" {
  before=$(tree)
  tune apply --profile density
  tune apply --profile throughput --connections 2000000 --exact
  tune persist
  [ -f "$root/etc/sysctl.d/90-roomwire.conf" ]
  run tune rollback
  [ "$status" -eq 0 ]
  # The kernel prints its own blanks and brackets; this tree keeps what was written last.
  [ "$(tr '\t' ' ' <"$root/proc/sys/net/ipv4/tcp_rmem")" = "4096 131072 6291456" ]
  [ "$(now net/core/somaxconn)" = 4096 ]
  [ "$(now kernel/io_uring_disabled)" = 2 ]
  [ "$(cat "$root/sys/kernel/mm/transparent_hugepage/enabled")" = always ]
  [ ! -e "$root/etc/sysctl.d/90-roomwire.conf" ]
  [ ! -e "$root/etc/roomwire/tuning.conf" ]
  run tune rollback
  [[ $output == *"nothing was changed"* ]]
}

@test "--dry-run says what would be done and does nothing" {
  before=$(tree)
  run tune apply --dry-run --notrack 8080
  [[ $output == *"would   net.core.somaxconn: 4096 -> 65535"* ]]
  [[ $output == *"would   take tcp port 8080 out of connection tracking"* ]]
  [ "$(tree)" = "$before" ]
  [ ! -e "$root/var/lib/roomwire" ]
}

@test "an apply that was interrupted can be rolled back" {
  # Nobody may write this one: the apply goes on, says so, and fails at its end.
  chmod 444 "$root/proc/sys/net/core/somaxconn"
  if [ "$(id -u)" = 0 ]; then
    rm "$root/proc/sys/net/core/somaxconn"
    mkdir "$root/proc/sys/net/core/somaxconn" # cannot be read: skipped with a word
  fi
  run tune apply
  [[ $output == *"somaxconn"* ]]
  # As if the machine had died right after a value was saved and before it was written.
  printf 'net.ipv4.tcp_slow_start_after_idle\t/proc/sys/net/ipv4/tcp_slow_start_after_idle\t1\n' >>"$root/var/lib/roomwire-tuning/saved.tsv"
  run tune rollback
  [ "$status" -eq 0 ]
  [ "$(now net/ipv4/tcp_slow_start_after_idle)" = 1 ]
}

@test "io_uring: 2 becomes 0, or 1 with a group; 1 is left alone" {
  tune apply
  [ "$(now kernel/io_uring_disabled)" = 0 ]
  tune rollback
  tune apply --io-uring-group roomwire
  [ "$(now kernel/io_uring_disabled)" = 1 ]
  [ "$(now kernel/io_uring_group)" = 990 ]
  tune rollback
  [ "$(now kernel/io_uring_group)" = -1 ]
  sysctl kernel/io_uring_disabled 1
  tune apply
  [ "$(now kernel/io_uring_disabled)" = 1 ]
}

@test "memory bounds what is asked for" {
  printf 'MemTotal:       512000 kB\n' >"$root/proc/meminfo"
  mkdir -p "$root/proc/sys/net/netfilter"
  sysctl net/netfilter/nf_conntrack_max 4096
  tune apply --connections 1000000
  [ "$(now net/netfilter/nf_conntrack_max)" = 102400 ]
}

@test "network cards: queues are spread over the cores, and go back" {
  card=$root/sys/class/net/eth0
  mkdir -p "$card"/device "$card"/queues/{rx-0,tx-0,tx-1}
  echo 0 >"$card/queues/rx-0/rps_cpus"; echo 0 >"$card/queues/rx-0/rps_flow_cnt"
  echo 0 >"$card/queues/tx-0/xps_cpus"; echo 0 >"$card/queues/tx-1/xps_cpus"
  sysctl net/core/rps_sock_flow_entries 0
  tune apply --nics
  [ "$(cat "$card/queues/rx-0/rps_cpus")" = f ]
  [ "$(cat "$card/queues/tx-1/xps_cpus")" = 2 ]
  [ "$(now net/core/rps_sock_flow_entries)" = 32768 ]
  tune rollback
  [ "$(cat "$card/queues/rx-0/rps_cpus")" = 0 ]
}

@test "interrupts: that of queue i goes to core i, others stay, and all go back" {
  card=$root/sys/class/net/eth0
  mkdir -p "$card"/device/msi_irqs "$card"/queues
  irq() { mkdir -p "$root/proc/irq/$1/$2"; touch "$card/device/msi_irqs/$1"; echo 0-3 >"$root/proc/irq/$1/smp_affinity_list"; }
  irq 24 eth0-TxRx-0; irq 25 eth0-TxRx-1; irq 26 eth0-TxRx-09; irq 27 eth0; irq 28 mlx5_comp3@pci:0000:01:00.0; irq 29 virtio0-config
  affinity() { cat "$root/proc/irq/$1/smp_affinity_list"; }
  run tune check --nics
  [[ $output == *"OFF     /proc/irq/25/smp_affinity_list = 0-3, wanted 1"* ]]
  tune apply --nics
  [ "$(affinity 24) $(affinity 25) $(affinity 26) $(affinity 27) $(affinity 28) $(affinity 29)" = "0 1 1 0-3 3 0-3" ]
  run tune apply --nics
  [[ $output == *"0 changed, 0 refused"* ]]
  tune rollback
  [ "$(affinity 24) $(affinity 25) $(affinity 28)" = "0-3 0-3 0-3" ]
}

@test "what was persisted is what the unit of the boot applies" {
  tune apply --profile throughput --connections 700000
  tune persist
  sysctl net/core/netdev_max_backlog 1000
  run tune apply
  [ "$(now net/core/netdev_max_backlog)" = 65536 ]
}

@test "persist without an apply, and onto a read-only /etc, says what is wrong" {
  run tune persist
  [ "$status" -eq 2 ]
  [[ $output == *"nothing was applied yet"* ]]
  tune apply
  rm -rf "$root/etc/sysctl.d"
  touch "$root/etc/sysctl.d" # no directory can be made there
  run tune persist
  [ "$status" -eq 2 ]
  [[ $output == *"read-only"* ]]
}

@test "bad arguments are refused with a reason" {
  run tune apply --profile fast
  [ "$status" -eq 2 ]
  [[ $output == *"no profile 'fast'"* ]]
  run tune check --connections many
  [ "$status" -eq 2 ]
  run tune apply --notrack 70000
  [ "$status" -eq 2 ]
  run tune frob
  [ "$status" -eq 2 ]
}

@test "JSON is JSON" {
  run tune check --json
  python3 -m json.tool <<<"$output" >/dev/null
  tune apply
  run tune status --json
  python3 -m json.tool <<<"$output" >/dev/null
  [[ $output == *'"name":"net.core.somaxconn","before":"4096","now":"65535"'* ]]
}

@test "nftables takes the rules of --notrack" {
  if ! command -v nft unshare >/dev/null || ! unshare -rn true 2>/dev/null; then skip "no nftables or no namespaces here"; fi
  sed -n '/^table inet roomwire_notrack$/,/^RULES$/p' "$tuning" | sed '/^RULES$/d; s/\$ports/8080,8443/' >"$BATS_TEST_TMPDIR/rules"
  grep -q 8443 "$BATS_TEST_TMPDIR/rules"
  run unshare -rn nft -f "$BATS_TEST_TMPDIR/rules"
  echo "$output"
  [ "$status" -eq 0 ]
}
