. "$HERE/safetensors.inc"
umask 022
modes() { (cd "$1" && find . -printf '%m %p\n' | sort -k2); }
sharded model
mkdir model/private model/readonly
echo '#!/bin/sh' >model/run.sh
echo secret >model/.env
echo x | tee model/private/x >model/readonly/x
chmod 755 model/run.sh
chmod 600 model/.env model/model-00001-of-00002.safetensors model/config.json
chmod 640 model/private/x model/model.safetensors.index.json
chmod 700 model/private
chmod 555 model/readonly
chmod 750 model
modes model >want
codecllm pack -q model packed
modes packed | cmp want && echo packed as the input
codecllm pack -q --dtype bf16 model cast
modes cast | cmp want && echo with another dtype, too
codecllm unpack -q packed again
modes again | cmp want && echo unpacked as the input
(umask 077; codecllm pack -q model umask077)
modes umask077 | cut -c2-3 | sort -u
# an empty directory that was there does not become wider
mkdir -m 700 narrow
codecllm pack -q model narrow
stat -c '%a %n' narrow
# while it is filled, nobody else can enter
mkdir -m 755 big
header='{"a":{"dtype":"BF16","shape":[4000,1000000],"data_offsets":[0,8000000000]}}'
{ length8 ${#header}; printf %s "$header"; } >big/model.safetensors
truncate -s $((8 + ${#header} + 8000000000)) big/model.safetensors
codecllm pack big filled &
pid=$!
while kill -0 $pid && ! ls -l /proc/$pid/fd 2>/dev/null | grep -q '/model\.safetensors$'; do sleep 0.02; done
stat -c %a .filled.partial-*
kill -TERM $pid
wait $pid
# what a directory with setgid hands down stays; the input's own does not come along
mkdir -m 2755 shared setgid
cp model/model-00002-of-00002.safetensors setgid/model.safetensors
codecllm pack -q model shared/out
stat -c '%a %n' shared/out shared/out/private
codecllm pack -q setgid plaingid
stat -c '%a %n' plaingid
# single files: what they replace is a limit
cp model/model-00002-of-00002.safetensors one
for mode in 644 600 755 444; do
    chmod $mode one
    rm -f out
    codecllm pack -q one out
    stat -c '%a packed' out
    rm -f plain
    codecllm unpack -q out plain
    stat -c '%a unpacked' plain
done
chmod 644 one
rm -f out
echo old >out
chmod 600 out
codecllm pack -q one out
stat -c '%a replaced' out
# links are followed; what others cannot reach they cannot read afterwards
mkdir -m 755 links links/sub
mkdir -p elsewhere/hidden/open elsewhere/group elsewhere/open
cp model/model-00002-of-00002.safetensors elsewhere/hidden/model.safetensors
for place in hidden/open group open; do echo y >elsewhere/$place/y; done
chmod 644 elsewhere/hidden/model.safetensors elsewhere/*/y elsewhere/hidden/open/y
chmod 700 elsewhere/hidden
chmod 750 elsewhere/group
ln -s ../elsewhere/hidden/model.safetensors links/model.safetensors
ln -s ../elsewhere/hidden/open links/hidden
ln -s ../../elsewhere/group/y links/sub/group
ln -s ../../elsewhere/open/y links/sub/open
ln -s ../config.json links/sub/config.json
echo '{}' >links/config.json
codecllm pack -q links links.packed
modes links.packed
find links.packed -type l
# a directory that hides both, as a home does, is the one that the input was taken from
mkdir -m 700 home
mv links elsewhere home/
codecllm pack -q home/links home.packed
modes home.packed | cmp - /dev/fd/3 3<<END && echo the same at home
$(modes links.packed)
END
ls -A
