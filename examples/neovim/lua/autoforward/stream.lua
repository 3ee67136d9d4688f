-- `autoforward events --follow` as a job: whole lines out of pieces, events out of lines, another job after one that ended.

local M = {}

local PREFIX = 'PORT_EVENT: '
local MAX_LINE_BYTES = 1024 * 1024 -- a line has some 700 bytes; what is longer is none of ours
local FIRST_DELAY_MS, LONGEST_DELAY_MS = 500, 30000
local WORKED_MS = 10000 -- a job that lasted this long had worked

local uv = vim.uv or vim.loop

local Stream = {}
Stream.__index = Stream

-- `handlers`: started(), event(object), ended(words or nil). `command`: a list.
function M.new(command, handlers)
  return setmetatable({ command = command, handlers = handlers, job = nil, delay_ms = FIRST_DELAY_MS }, Stream)
end

-- The object of a line, nil for anything else. JSON's null becomes nil.
function M.parse(line)
  if line:sub(1, #PREFIX) ~= PREFIX then
    return nil
  end
  local text = line:sub(#PREFIX + 1)
  local ok, object = pcall(vim.json.decode, text)
  if not ok then
    -- JSON's grammar knows half a surrogate pair, Neovim's decoder does not.
    ok, object = pcall(vim.json.decode, (text:gsub('\\u[dD][89a-fA-F]%x%x', '\\ufffd')))
  end
  if not ok or type(object) ~= 'table' then
    return nil
  end
  for key, value in pairs(object) do
    if value == vim.NIL then
      object[key] = nil
    end
  end
  if type(object.event) ~= 'string' or type(object.seq) ~= 'number' then
    return nil
  end
  for _, name in ipairs({ 'port', 'localPort' }) do
    if object[name] ~= nil and type(object[name]) ~= 'number' then
      return nil
    end
  end
  for _, name in ipairs({ 'id', 'url', 'label', 'status', 'reason', 'transport', 'hostIp', 'containerId', 'containerName',
    'containerHost', 'service', 'onAutoForward' }) do
    if object[name] ~= nil and type(object[name]) ~= 'string' then
      return nil
    end
  end
  return object
end

-- Joins what a job's callback gets (`:help channel-lines`) to whole lines.
function M.lines(on_line)
  local partial, too_long = '', false
  return function(data)
    for index, piece in ipairs(data) do
      if index > 1 then
        if not too_long then
          on_line(partial)
        end
        partial, too_long = '', false
      end
      if #partial + #piece > MAX_LINE_BYTES then
        partial, too_long = '', true
      end
      partial = too_long and '' or partial .. piece
    end
  end
end

function Stream:start()
  if self.job then
    return
  end
  local run, words = {}, nil -- `run` tells this job's callbacks from those of one before it
  self.run, self.since_ms = run, uv.now()
  local read = M.lines(function(line)
    local event = M.parse(line)
    if event and self.run == run then
      self.handlers.event(event)
    end
  end)
  local read_error = M.lines(function(line)
    words = line ~= '' and line or words
  end)
  self.handlers.started()
  local ok, job = pcall(vim.fn.jobstart, self.command, {
    on_stdout = function(_, data)
      read(data)
    end,
    on_stderr = function(_, data)
      read_error(data)
    end,
    on_exit = function(_, status)
      if self.run == run then
        self:_again(words or ('it ended with status ' .. status))
      end
    end,
  })
  if ok and job > 0 then
    self.job = job
  else
    self:_again(('cannot run %s'):format(self.command[1]))
  end
end

-- Another job after a while, a longer one each time.
function Stream:_again(words)
  if uv.now() - self.since_ms >= WORKED_MS then
    self.delay_ms = FIRST_DELAY_MS
  end
  local delay_ms, run = self.delay_ms, {}
  self.delay_ms = math.min(delay_ms * 2, LONGEST_DELAY_MS)
  self.job, self.run = nil, run
  self.handlers.ended(words)
  vim.defer_fn(function()
    if self.run == run then
      self:start()
    end
  end, delay_ms)
end

-- End this job and start another, which begins with a replay. `words`: why.
function Stream:restart(words)
  local job = self.job
  self:_again(words)
  if job then
    vim.fn.jobstop(job)
  end
end

function Stream:stop()
  local job = self.job
  self.job, self.run = nil, nil
  if job then
    vim.fn.jobstop(job)
  end
end

return M
