#!/bin/sh
# tree.sh EXTRA TREE [MORE]: the whole file system of the image of one extra (device, server), in a new folder TREE. MORE
# are further extras, with commas (pictures); with registry among them `offramp` is there too, to follow a tag.
#
# Called by the Dockerfile on Debian 12, with the wheel of this project in /wheels. What is left out was looked up by
# size; the image is run at the end, so that a release that needs it after all fails the build and not the device.
set -eu
extra=$1
tree=$2
more=${3:-pictures}
here=$(cd "$(dirname "$0")" && pwd)
packages=$tree/usr/local/lib/python3.11/dist-packages

# Python and the libraries that it and the wheels are linked to, taken out of their Debian packages.
mkdir -p "$tree/var/lib/dpkg/status.d" "$tree/etc"
debs=$(mktemp -d)
chmod 755 "$debs"
(cd "$debs" && apt-get download --quiet --quiet \
  libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 libsqlite3-0 libssl3 libstdc++6 libuuid1 zlib1g libbz2-1.0 liblzma5 \
  libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
for deb in "$debs"/*.deb; do
  dpkg-deb --extract "$deb" "$tree"
  # Where scanners of images look for what is inside.
  dpkg-deb --field "$deb" > "$tree/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"
done
rm -r "$debs"
ln -s python3.11 "$tree/usr/bin/python3"
printf 'root:x:0:0:root:/:/sbin/nologin\nofframp:x:65532:65532::/:/sbin/nologin\n' > "$tree/etc/passwd"
printf 'root:x:0:\nofframp:x:65532:\n' > "$tree/etc/group"
printf 'hosts: files dns\n' > "$tree/etc/nsswitch.conf"
mkdir -p "$tree/proc" "$tree/sys" "$tree/dev" "$tree/tmp"
chmod 1777 "$tree/tmp"

# The program and its extra.
python3 -m pip install --no-compile --no-cache-dir --root-user-action ignore --target "$packages" \
  "$(echo /wheels/offramp-*.whl)[$extra,$more]"
case $extra in device) program=edge-device ;; server) program=cloud-server ;; esac
install -D -m 755 "$packages/bin/$program" "$tree/usr/local/bin/$program"
case ,$more, in
  *,registry,*) install -D -m 755 "$packages/bin/offramp" "$tree/usr/local/bin/offramp" ;;
  *) rm -r "$packages/offramp/cli" ;;
esac
install -D -m 644 "$here/health.py" "$tree/usr/local/lib/offramp/health.py"
rm -r "${packages:?}/bin"

# Of Debian: character sets, locales, manuals, and the parts of the standard library that are for developers.
find "$tree/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$tree"/usr/share/man "$tree"/usr/share/locale "$tree"/usr/share/lintian "$tree"/usr/share/binfmts \
  "$tree"/usr/lib/*-linux-gnu/gconv "$tree"/usr/lib/*-linux-gnu/perl5 "$tree"/lib/*-linux-gnu/libmvec.so* \
  "$tree"/usr/share/gdb "$tree"/usr/share/gcc "$tree"/usr/sbin "$tree"/usr/share/applications "$tree"/usr/share/pixmaps
cd "$tree/usr/lib/python3.11"
rm -rf lib2to3 pydoc_data pydoc.py distutils doctest.py test unittest idlelib tkinter turtle.py turtledemo ensurepip \
  curses xmlrpc lib-dynload/_curses* lib-dynload/_test* lib-dynload/_ctypes_test* lib-dynload/_xxtest* \
  lib-dynload/_codecs_*

# Of the wheels: tests, headers, type stubs, tools to convert models, the parts of NumPy that it loads when they are
# used and that nothing here uses, and a second copy of ONNX Runtime, for programs in C.
cd "$packages"
rm -rf numpy/f2py numpy/_core/include numpy/_core/lib numpy/_pyinstaller numpy/distutils numpy/testing numpy/random \
  numpy/fft numpy/polynomial numpy/ma numpy/_core/_simd.*.so numpy/_core/*_tests.*.so onnxruntime/transformers \
  onnxruntime/tools onnxruntime/quantization onnxruntime/datasets onnxruntime/backend \
  onnxruntime/capi/libonnxruntime.so* google/protobuf/compiler bitarray/examples bitarray/test_*.py grpc/beta \
  grpc/framework pydantic/v1 \
  offramp/training offramp/bench ./*.dist-info/RECORD
find . -depth -type d \( -name tests -o -name test_data -o -name __pycache__ \) -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' \) -delete
if [ -d PIL ]; then
  # Picture formats and fonts that neither side reads, then the libraries that only they were linked to.
  rm -f PIL/_avif.*.so PIL/_imagingft.*.so PIL/_imagingcms.*.so PIL/_imagingtk.*.so PIL/_imagingmorph.*.so PIL/_imagingmath.*.so
  find PIL -name '*ImagePlugin.py' ! -name 'Bmp*' ! -name 'Gif*' ! -name 'Jpeg*' ! -name 'Mpo*' ! -name 'Png*' \
    ! -name 'Ppm*' ! -name 'Tiff*' ! -name 'WebP*' -delete
  (cd PIL && rm -f ImageCms.py ImageDraw*.py ImageFont.py ImageGrab.py ImageMath.py ImageMorph.py ImageQt.py ImageShow.py \
    ImageText.py ImageTk.py PSDraw.py PdfParser.py)
  mkdir kept
  keep_needed() {
    for library in $(readelf --dynamic "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
      if [ -e "pillow.libs/$library" ]; then
        mv "pillow.libs/$library" kept/
        keep_needed "kept/$library"
      fi
    done
  }
  for module in PIL/*.so; do keep_needed "$module"; done
  rm -r pillow.libs
  mv kept pillow.libs
fi
# Symbols of extension modules; libraries in *.libs are laid out by patchelf, which strip does not know of.
find . -name '*.so' -type f ! -path '*.libs/*' -exec strip --strip-unneeded {} +

# Bytecode instead of source: nothing is compiled at each start, and a traceback still names file and line.
for folder in "$tree/usr/lib/python3.11" "$packages" "$tree/usr/local/lib/offramp"; do
  python3 -m compileall -q -b -s "$tree" -p / "$folder"
  find "$folder" -name '*.py' -delete
done

# Does it still start, and do what it is for?
chroot "$tree" "/usr/local/bin/$program" --version
chroot "$tree" /usr/bin/python3 - "$extra" < "$here/smoke.py"
if [ -e "$tree/usr/local/bin/offramp" ]; then chroot "$tree" /usr/local/bin/offramp follow --help > /dev/null; fi
