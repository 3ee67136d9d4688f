-- Forwarded ports of dev containers in Neovim (0.7 and later): follows `autoforward events`, keeps a list, says what is new.

local ports = require('autoforward.ports')
local stream = require('autoforward.stream')
local text = require('autoforward.text')
local view = require('autoforward.view')

local M = {}

-- How long new forwards are collected, so that a burst is one message; and how many of them are named.
local COLLECT_MS, MAX_NAMED = 200, 5

local config = {
  command = { 'autoforward' },
  target = nil, -- only this container or folder
  notify = true,
  open = nil, -- function(url); else vim.ui.open, or the desktop's opener
}

local state = { ports = ports.new(), stream = nil, problem = nil, news = {}, rendering = false }

M.last_event = nil -- what the `User` autocommands are about; from Neovim 0.8 on also in their `data`

local function emit(pattern, event)
  M.last_event = event
  local options = { pattern = pattern, modeline = false }
  if vim.fn.has('nvim-0.8') == 1 then
    options.data = event
  end
  vim.api.nvim_exec_autocmds('User', options)
end

local function note()
  if state.problem then
    return ('autoforward is not followed: %s; it is tried again'):format(state.problem)
  end
  return next(state.ports.rows) == nil and 'nothing is forwarded' or nil
end

local function render()
  view.render(state.ports:sorted(), note())
end

-- Many events in one turn of the loop are one change.
local function changed(event)
  if not state.rendering then
    state.rendering = true
    vim.schedule(function()
      state.rendering = false
      render()
      emit('AutoforwardChanged', event)
    end)
  end
end

local function tell()
  local news, lines = state.news, {}
  state.news = {}
  for index, row in ipairs(news) do
    if index > MAX_NAMED then
      lines[index] = ('and %d more'):format(#news - MAX_NAMED)
      break
    end
    local label = row.label and (' (%s)'):format(text.plain(row.label)) or ''
    lines[index] = ('port %d%s of %s: %s'):format(row.port, label, text.plain(row.containerName or '?'), text.where(row))
  end
  vim.notify(table.concat(lines, '\n'), vim.log.levels.INFO, { title = 'autoforward' })
end

-- A forward has come up that was not there. `openBrowser` and `openBrowserOnce` are the supervisor's: it opens them,
-- once for all editors that follow.
local function act(event)
  if event.onAutoForward == 'notify' and config.notify then
    state.news[#state.news + 1] = event
    if #state.news == 1 then
      vim.defer_fn(tell, COLLECT_MS)
    end
  elseif event.onAutoForward == 'openPreview' then
    emit('AutoforwardPreview', event)
  end
end

local function on_event(event)
  if not config.target and not state.ports:in_order(event) then
    -- Something was missed (its log could not be written, or was emptied): a new follower is told all that is up.
    state.stream:restart('an event was missed')
    return
  end
  if state.ports:apply(event, (vim.uv or vim.loop).now()) then
    act(event)
  end
  changed(event)
end

-- Options: see README.md. Call it before the follower starts, from init.lua.
function M.setup(options)
  config = vim.tbl_extend('force', config, options or {})
  if type(config.command) == 'string' then
    config.command = { config.command }
  end
end

-- Follow from now on; fine when it does already.
function M.start()
  if not state.stream then
    local command = vim.list_extend(vim.list_extend({}, config.command), { 'events', '--follow' })
    if config.target then
      vim.list_extend(command, { '--target', config.target })
    end
    state.stream = stream.new(command, {
      started = function()
        state.ports:clear()
        changed()
      end,
      event = function(event)
        state.problem = nil
        on_event(event)
      end,
      ended = function(words)
        state.problem = words
        state.ports:clear()
        changed()
      end,
    })
  end
  state.stream:start()
end

function M.stop()
  if state.stream then
    state.stream:stop()
    state.stream = nil
    state.ports:clear()
    changed()
  end
end

-- The ports as they are now: PORT_EVENT objects, sorted. For status lines and pickers.
function M.ports()
  return state.ports:sorted()
end

-- `:Ports`
function M.show()
  M.start()
  view.show(M.open)
  render()
end

-- Open a row (or a number: the port of a container) in the browser.
function M.open(row)
  if type(row) == 'number' then
    local number = row
    row = vim.tbl_filter(function(one)
      return one.port == number
    end, M.ports())[1] or {}
  end
  -- Only what a browser is for: an opener runs whatever a scheme is registered for.
  if not row.url or not row.url:match('^https?://[%w.:%%%[%]_-]+$') then
    vim.notify('autoforward: this port has no URL', vim.log.levels.WARN)
  elseif config.open then
    config.open(row.url)
  elseif vim.ui.open then
    vim.ui.open(row.url)
  else
    local opener = vim.fn.has('mac') == 1 and 'open' or 'xdg-open'
    if not pcall(vim.fn.jobstart, { opener, row.url }, { detach = true }) then
      vim.notify(('autoforward: no %s: open %s'):format(opener, row.url), vim.log.levels.WARN)
    end
  end
end

return M
