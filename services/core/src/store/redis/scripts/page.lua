-- The stream's identity, and its entries from a place on.
redis.call('SET', log, new_log, 'NX')
return {redis.call('GET', log), redis.call('XRANGE', stream, ARGV[3], '+', 'COUNT', ARGV[4])}
