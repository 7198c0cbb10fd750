#!/usr/bin/env bash
# Runs a statically linked Linux program on an emulated Intel processor with AMX (Sapphire Rapids), on any x86-64 machine with Debian.
# What it says stands in `usage` below.
#
# The processor is that of Bochs, whose interpreter of instructions has nothing in common with our code. It is built from source, with
# bochs.patch, at the first use: Debian's Bochs is built without AMX. It starts Debian's kernel, which gives programs tile registers as on a real
# machine: to those that ask. Everything is kept in tools/amx/machine, and nothing is installed.
set -euo pipefail

usage() {
    cat <<'END'
Runs a statically linked Linux program on an emulated Intel processor with AMX.

  tools/amx/emulate.sh [--memory MIB] [--seconds S] PROGRAM [ARG ...]

  --memory MIB   memory of the emulated machine (1024, of 256 to 2048)
  --seconds S    stop it after so many seconds (900)

Example:
  rustc -O -C target-feature=+crt-static hello.rs && tools/amx/emulate.sh ./hello world

The program gets its arguments, the variables PRIME_* and RUST_*, an empty /tmp and no input. Its output and errors come as one stream, line by line.
The status is the program's (128 and the signal's number if one ended it), 124 if the time was over, 125 if the machine could not be built or did
not start, 2 if this was called wrongly.
END
}

fail() {
    echo "emulate.sh: $*" >&2
    exit 125
}

misuse() {
    echo "emulate.sh: $* (emulate.sh --help says more)" >&2
    exit 2
}

memory=1024
seconds=900
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        usage
        exit
        ;;
    --memory | --seconds)
        [[ ${2-} =~ ^[1-9][0-9]{0,5}$ ]] || misuse "$1 needs a number, not \"${2-}\""
        [ "$1" = --memory ] && memory=$2 || seconds=$2
        shift
        ;;
    --)
        shift
        break
        ;;
    -*) misuse "there is no option $1" ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || misuse "name a program"
[ "$memory" -ge 256 ] && [ "$memory" -le 2048 ] || misuse "--memory is of 256 to 2048 MiB, not $memory"
program=$1
shift
[ -f "$program" ] && [ -x "$program" ] || misuse "$program is not a program"
program=$(realpath "$program")

[ "$(uname -sm)" = "Linux x86_64" ] || fail "Bochs is built here for Linux on x86-64, not for $(uname -sm)"
for tool in gcc g++ make patch tar xz readelf apt-get dpkg-deb timeout; do
    command -v $tool >/dev/null || fail "$tool is needed (on Debian: apt-get install build-essential xz-utils) and not here"
done
header=$(LC_ALL=C readelf -hlW "$program" 2>/dev/null) || misuse "$program is not an ELF program"
[[ $header == *X86-64* ]] || misuse "$program is not for x86-64"
[[ $header != *" INTERP "* ]] || misuse "$program is not statically linked; in Rust: RUSTFLAGS='-C target-feature=+crt-static'"

# What the machine is made of. The sums of Debian's packages are checked by apt.
bochs_source=http://deb.debian.org/debian/pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz
bochs_sha256=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
bochs_options=(--with-nogui --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-cpu-level=6
    --enable-all-optimizations --disable-show-ips --disable-docbook)
kernel=linux-image-cloud-amd64
packages=(bochsbios vgabios isolinux syslinux-common genisoimage busybox-static)

here=$(cd "$(dirname "$0")" && pwd)
# Its name is that of its parts: another list of parts is another machine. The kernel is the newest when it is built.
parts=$(echo "$bochs_sha256 ${bochs_options[*]} $kernel ${packages[*]}" | cat - "$here/bochs.patch" | sha256sum | cut -c1-12)
machine=$here/machine/$parts
work=
bochs=
# shellcheck disable=SC2317,SC2329
clean() {
    [ -z "$bochs" ] || kill "$bochs" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Debian's lists and packages, as this user, without a change of the system.
apt() {
    local name=$1
    shift
    "$name" -qq -o Dir::State="$work/apt/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$work/apt/cache" \
        -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any -o Acquire::Retries=2 "$@"
}

build() {
    echo "emulate.sh: building the emulated machine in $machine, once, in some minutes" >&2
    mkdir -p "$here/machine"
    work=$(mktemp -d "$here/machine/building.XXXXXX")
    mkdir -p "$work"/apt/state/lists/partial "$work"/apt/cache/archives/partial "$work"/{packages,system,bochs,machine/lib}
    cd "$work/packages"
    apt apt-get update >"$work/log" 2>&1 || fail "Debian's lists of packages could not be fetched: $(tail -1 "$work/log")"
    local image magic
    image=$(apt apt-cache depends "$kernel" | awk '/ Depends: linux-image-[0-9]/ {print $2; exit}') || true
    [ -n "$image" ] || fail "this system's packages have no kernel by the name of $kernel"
    magic=$(apt apt-cache depends genisoimage | awk '/ Depends: libmagic/ {print $2; exit}') || true
    apt apt-get download "$image" "${packages[@]}" ${magic:+"$magic"} >"$work/log" 2>&1 ||
        fail "packages could not be fetched: $(tail -1 "$work/log")"
    local package
    for package in *.deb; do
        dpkg-deb -x "$package" "$work/system"
    done
    # apt's own helper, since there is always one here, and it compares the sum.
    /usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file "$bochs_source" "$work/bochs.tar.xz" "SHA256:$bochs_sha256" >"$work/log" 2>&1 ||
        fail "the source of Bochs could not be fetched from $bochs_source: $(tail -2 "$work/log" | head -1)"
    tar -xf "$work/bochs.tar.xz" -C "$work/bochs" --strip-components 1
    cd "$work/bochs"
    patch -sp1 <"$here/bochs.patch" || fail "bochs.patch does not fit the source of Bochs"
    CFLAGS=-O2 CXXFLAGS=-O2 ./configure "${bochs_options[@]}" >"$work/log" 2>&1 && make -j"$(nproc)" >"$work/log" 2>&1 ||
        fail "Bochs could not be built:"$'\n'"$(tail -20 "$work/log")"
    strip bochs
    cd "$work/system"
    mv boot/vmlinuz-* "$work/machine/linux"
    mv usr/bin/genisoimage "$work/bochs/bochs" bin/busybox usr/share/bochs/BIOS-bochs-latest usr/share/vgabios/vgabios.bin \
        usr/lib/ISOLINUX/isolinux.bin usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/machine"
    find . -name 'libmagic.so.1*' -exec mv {} "$work/machine/lib" \;
    # Whole, or not there. Another call may have been faster.
    mv -T "$work/machine" "$machine" 2>/dev/null || [ -d "$machine" ] || fail "$machine could not be made"
    cd "$here"
    rm -rf "$work"
    work=
}

if [ ! -d "$machine" ]; then
    build
fi
# Begins no line of a program's output by chance.
mark="emulate.sh-$$-$RANDOM$RANDOM"
work=$(mktemp -d)

# The files of the emulated machine: a shell, the program, and how it is called.
quote() {
    printf "'%s'" "${1//\'/\'\\\'\'}"
}
files=$work/files
mkdir -p "$files"/{bin,dev,proc,sys,tmp,program} "$work/image/isolinux"
cp "$machine/busybox" "$files/bin"
cp "$program" "$files/program"
{
    echo 'export HOME=/tmp PATH=/bin TMPDIR=/tmp'
    while IFS= read -r name; do
        echo "export $name=$(quote "${!name}")"
    done < <(compgen -e | grep -E '^(PRIME|RUST)_' || true)
    printf 'exec %s' "$(quote "/program/$(basename "$program")")"
    for argument in "$@"; do
        printf ' %s' "$(quote "$argument")"
    done
    echo ' </dev/null'
} >"$files/start"
cat >"$files/init" <<END
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox stty -F /dev/ttyS0 raw
cd /tmp
echo "$mark begins"
/bin/busybox sh /start
echo "$mark \$?"
exec /bin/busybox sleep 2147483647
END
chmod +x "$files/init"
(cd "$files" && find . | "$machine/busybox" cpio -o -H newc 2>/dev/null) >"$work/image/files"

# Bochs has no other way to start a kernel than from a disk.
cp "$machine/linux" "$work/image"
cp "$machine"/{isolinux.bin,ldlinux.c32} "$work/image/isolinux"
# no5lvl: Bochs' processor does not come back from the BIOS' system management mode while five levels of page tables are in use.
# clearcpuid=fsrm: with short fast moves and without fast ones (the BIOS leaves them off), the kernel's memmove loses its check of lengths.
cat >"$work/image/isolinux/isolinux.cfg" <<'END'
default program
prompt 0
label program
  kernel /linux
  append initrd=/files console=ttyS0,115200 quiet mitigations=off no5lvl clearcpuid=fsrm
END
LD_LIBRARY_PATH=$machine/lib "$machine/genisoimage" -quiet -o "$work/disk" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$work/image" || fail "the emulated machine's disk could not be written to $work"
rm -r "$files" "$work/image"

# Time passes with the instructions, so many in a second: about as many as it does.
cat >"$work/bochsrc" <<END
config_interface: textconfig
display_library: nogui
cpu: model=sapphire_rapids, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=$memory, host=$memory
romimage: file="$machine/BIOS-bochs-latest", options=fastboot
vgaromimage: file="$machine/vgabios.bin"
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path="$work/disk", status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=/dev/fd/3
log: "$work/log"
panic: action=fatal
error: action=ignore
info: action=ignore
END
exec 4< <(cd "$work" && exec timeout -k 5 "$seconds" "$machine/bochs" -q -f bochsrc 3>&1 >"$work/log2" 2>&1 </dev/null)
bochs=$!

# The console: the kernel's until the program begins, then the program's.
started=
status=
patience=(-t 300)
while IFS= read -r "${patience[@]}" line <&4 || [ -n "$line" ]; do
    if [ "${line%$'\r'}" = "$mark begins" ]; then
        started=yes
        patience=()
    elif [ -z "$started" ]; then
        echo "${line%$'\r'}" >>"$work/console"
    elif [[ $line == *"$mark "* ]]; then
        printf %s "${line%%"$mark "*}"
        status=${line##*"$mark "}
        break
    else
        printf '%s\n' "$line"
    fi
    [[ $line != *"Kernel panic - not syncing"* ]] || break
done
[ -z "$status" ] || exit "$status"
if [ -z "$started" ]; then
    [ ! -f "$work/console" ] || tail -20 "$work/console" >&2
    grep -ah PANIC "$work/log" >&2 || true
    fail "the emulated machine did not start; what it said, if anything, stands above"
fi
[[ $line != *"Kernel panic"* ]] || fail "the emulated machine's kernel panicked; what it said stands above"
code=0
wait "$bochs" || code=$?
bochs=
if [ $code = 124 ] || [ $code = 137 ]; then
    echo "emulate.sh: the program was stopped after $seconds s (--seconds)" >&2
    exit 124
fi
grep -ah PANIC "$work/log" >&2 || true
fail "the emulated machine ended while the program ran; what it said, if anything, stands above"
