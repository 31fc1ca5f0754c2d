-- For wrk: sends each of the prepared requests in a file once, and prints what came back as one line of JSON.
-- The requests stand one after the other, each ended by a NUL. Before the first is sent it says "begun".

local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(arguments)
    requests, position, exhausted = {}, 0, 0
    read, created, refused, unavailable, others = 0, 0, 0, 0, 0
    local file = assert(io.open(arguments[1], "rb"))
    for request in file:read("*a"):gmatch("(%Z+)%z") do
        requests[#requests + 1] = request
    end
    file:close()
end

function request()
    if position == 0 then
        print("begun")
        io.flush()
    end
    position = position + 1
    if position > #requests then
        exhausted = 1
        wrk.thread:stop()
        position = #requests
    end
    return requests[position]
end

function response(status)
    if status == 200 then
        read = read + 1
    elseif status == 201 then
        created = created + 1
    elseif status == 409 then
        refused = refused + 1
    elseif status == 503 then
        unavailable = unavailable + 1
    else
        others = others + 1
    end
end

function done(summary, latency)
    local read, created, refused, unavailable, others, exhausted = 0, 0, 0, 0, 0, 0
    for _, thread in ipairs(threads) do
        read = read + thread:get("read")
        created = created + thread:get("created")
        refused = refused + thread:get("refused")
        unavailable = unavailable + thread:get("unavailable")
        others = others + thread:get("others")
        exhausted = exhausted + thread:get("exhausted")
    end
    local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
    print(string.format(
        '{"read": %d, "created": %d, "refused": %d, "unavailable": %d, "others": %d, "failed": %d, "exhausted": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "worst_ms": %.3f}',
        read, created, refused, unavailable, others, failed, exhausted, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
