<?php
// phpredis: `php phpredis.php HOST PORT MODE`, see clients/__init__.py.
// MODE: connect, pconnect (a persistent connection, taken up again), pipeline.
[, $host, $port, $mode] = $argv;
$requests = explode("\n", rtrim(stream_get_contents(STDIN), "\n"));

function open_client(string $host, int $port, string $mode): Redis
{
    $redis = new Redis();
    $opened = $mode === 'pconnect'
        ? $redis->pconnect($host, $port, 5)
        : $redis->connect($host, $port, 5);
    if (!$opened) {
        throw new RuntimeException("$mode: " . $redis->getLastError());
    }
    return $redis;
}

$redis = open_client($host, (int) $port, $mode);
if ($mode === 'pipeline') {
    $pipeline = $redis->multi(Redis::PIPELINE);
    foreach ($requests as $request) {
        $pipeline->get($request);
    }
    $replies = $pipeline->exec();
} else {
    $replies = [];
    foreach ($requests as $number => $request) {
        if ($mode === 'pconnect' && $number % 10 === 9) {
            unset($redis);
            $redis = open_client($host, (int) $port, $mode);
        }
        $replies[] = $redis->get($request);
    }
}
foreach ($replies as $reply) {
    if (!is_string($reply)) {
        fwrite(STDERR, var_export($reply, true) . ' ' . $redis->getLastError() . "\n");
        exit(1);
    }
    echo $reply, "\n";
}
