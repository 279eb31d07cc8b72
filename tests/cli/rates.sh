. "$HERE/safetensors.inc"
# rates: a line whose time is below a tenth of a second has no rate, every other one has (0.10 is both: it is rounded)
rates() {
    sed -nE 's/.* ([0-9.]+) s(, [0-9]+ MB\/s)?.*/\1 \2/p' "$1" | awk '$1 < 0.1 && NF > 1 || $1 > 0.1 && NF == 1 { print "wrong: " $0; bad = 1 } END { print bad ? "" : NR " fine" }'
}
sharded model
codecllm pack model packed 2>err
codecllm verify packed 2>>err >/dev/null
codecllm unpack packed plain 2>>err
rates err
# a second of work has its rate
header='{"a":{"dtype":"BF16","shape":[100,1000000],"data_offsets":[0,200000000]}}'
{ length8 ${#header}; printf %s "$header"; } >big
truncate -s $((8 + ${#header} + 200000000)) big
codecllm pack big packed.big 2>err
codecllm verify packed.big 2>>err >/dev/null
rates err
