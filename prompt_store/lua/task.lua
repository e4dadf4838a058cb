-- task → ok, the fields of its hash
return {'ok', redis.call('HGETALL', TASK .. ARGV[3])}
